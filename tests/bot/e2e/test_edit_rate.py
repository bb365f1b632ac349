"""How often the bot edits, as Discord counts it: many streams at once, and full queues beside them."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import simcord

from bot.delivery.column import EDIT_INTERVAL_S
from bot.delivery.delivery import MAX_PARTS
from bot.delivery.render import render
from engine.types import ChatMessage
from tests.bot.e2e.world import World, labels, open_world
from tests.fakes import Script

NUM_STREAMS = 20
MAX_EDITS = 5
WINDOW_S = 5.0
NUM_PIECES = 18
STEP_S = 0.5
FIRST_S = 6.0
"""Until the first word of an answer: long enough to ask everything before."""
EDIT = re.compile(r"/channels/(\d+)/messages/(\d+)")


class TimedLog(list[Any]):
    """simcord's record of requests that knows when an edit came: (channel, message), seconds."""

    def __init__(self, env: simcord.Env) -> None:
        super().__init__()
        self._clock: Any = env.backend.clock
        self.edits: list[tuple[tuple[int, int], float]] = []

    def append(self, entry: Any) -> None:
        super().append(entry)
        found = EDIT.fullmatch(entry.path)
        if entry.method == "PATCH" and found is not None:
            self.edits.append(((int(found[1]), int(found[2])), self._clock.elapsed))

    def times(self, place: int) -> dict[int, list[float]]:
        """Return when edits came, by channel (0) or message (1)."""
        times: dict[int, list[float]] = defaultdict(list)
        for ids, at_s in self.edits:
            times[ids[place]].append(at_s)
        return times


def watch_edits(world: World) -> TimedLog:
    log = TimedLog(world.env)
    backend: Any = world.env.backend
    backend.http_requests = log
    return log


def check_rate(log: TimedLog) -> None:
    """Assert that no channel, and so no message, saw five edits within five seconds."""
    for times in log.times(0).values():
        for first, fifth in zip(times, times[MAX_EDITS - 1 :], strict=False):
            assert fifth - first >= WINDOW_S


async def until_quiet(world: World) -> None:
    """Let time pass until every answer is made and shown."""
    for _ in range(400):
        await world.env.advance_time(STEP_S)
        if not world.client.chat.num_running and not world.client.chat.num_waiting:
            await world.env.advance_time(FIRST_S)  # from here on every message may be edited again
            return
    raise AssertionError("it never ends")


async def test_twenty_streams_stay_below_five_edits_in_five_seconds_and_end_complete(tmp_path: Path) -> None:
    async with open_world(tmp_path / "llamacord.sqlite3", edit_interval_s=EDIT_INTERVAL_S) as world:
        numbers = itertools.count()
        texts: list[str] = []

        def respond(dialog: object) -> Script:
            number = next(numbers)
            pieces = [f"answer{number}"] + [f" word{n}" for n in range(NUM_PIECES - 1)]
            texts.append("".join(pieces))
            return Script(pieces, delay_s=0.4 + 0.1 * (number % 3), first_delay_s=FIRST_S)

        world.engine.respond = respond
        world.engine.max_requests, world.engine.max_kv_tokens = NUM_STREAMS, NUM_STREAMS * 4096
        log = watch_edits(world)
        rooms = [world.guild.create_text_channel(f"room{n}") for n in range(NUM_STREAMS)]
        await world.env.settle()
        for room in rooms:
            await world.newcomer().send(room, f"{world.me} hi")
        assert world.engine.num_running == NUM_STREAMS
        await until_quiet(world)
        check_rate(log)
        assert all(len(times) >= 5 for times in log.times(0).values()), "they are streams"
        assert sorted(world.reply(room).content for room in rooms) == sorted(texts)
        assert all(labels(world.reply(room)) == ["Regenerate"] for room in rooms)


async def test_a_full_queue_that_moves_on_stays_below_the_limit_of_its_channel(tmp_path: Path) -> None:
    async with open_world(tmp_path / "llamacord.sqlite3", edit_interval_s=EDIT_INTERVAL_S) as world:

        def respond(dialog: Sequence[ChatMessage]) -> Script:
            return Script(
                (f"heard {dialog[-1].content}", " and", " more"), delay_s=0.4, first_delay_s=FIRST_S
            )

        world.engine.respond = respond
        log = watch_edits(world)
        for number in range(9):
            await world.newcomer().send(world.general, f"{world.me} q{number}.")
        await until_quiet(world)
        check_rate(log)
        assert len(log.edits) >= 9
        replies = world.replies(world.general)
        heard = [found for m in replies for found in re.findall(r"q(\d)\. and more$", m.content)]
        assert sorted(heard) == [str(number) for number in range(9)]
        assert all(labels(m) == ["Regenerate"] for m in replies)


async def test_a_long_answer_that_is_made_anew_stays_below_the_limit_of_its_channel(tmp_path: Path) -> None:
    async with open_world(tmp_path / "llamacord.sqlite3", edit_interval_s=EDIT_INTERVAL_S) as world:
        texts = ["".join(f"{name}{n} " * 50 for n in range(24)) for name in ("first", "again")]
        world.engine.scripts = [
            Script([text[n : n + 250] for n in range(0, len(text), 250)], 0.3, first_delay_s=FIRST_S)
            for text in texts
        ]
        log = watch_edits(world)
        await world.anna.send(world.general, f"{world.me} hi")
        await until_quiet(world)
        assert contents(world) == render(texts[0].strip(), final=True)
        assert len(contents(world)) == MAX_PARTS
        await world.anna.click(world.replies(world.general)[-1], label="Regenerate")
        await until_quiet(world)
        check_rate(log)
        assert contents(world) == render(texts[1].strip(), final=True)


def contents(world: World) -> list[str]:
    return [m.content for m in world.replies(world.general)]
