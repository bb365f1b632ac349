"""A year of a server in virtual time: restarts, outages, kills, and whether what is shown is what is stored.

    python -m benchmarks.made_year
    python -m benchmarks.made_year --days 7 --questions 2000 --kills 100

Two hundred channels that are asked in as Zipf has it, by day and by night; a restart every day, outages of
10 seconds to an hour, requests that are lost or carried out without an answer, and kills at random steps of
the event loop while answers are under way. After every kill and every outage all that has ended must be
shown as it is stored within a minute of the connection's return, and once a day all messages are looked at:
none of nobody, none between another answer's parts, none that offers to stop what has ended, no question
without an answer that the bot was there for. Database and process may not grow in the second half. Prints
what came of it. Ends with 1 where a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.common import print_table
from benchmarks.virtual_life import START_S, World, in_world
from bot.conversation import answering, prompting
from bot.on_discord.connection import StartError
from bot.privacy import Keeping
from engine.logs import describe_fault
from engine.types import ChatMessage, Prompt
from tests.bot.operations.comparing import Difference, buttons, differences
from tests.bot.operations.discord_api import EPOCH_MS, Payload, is_ours
from tests.bot.operations.local_discord import CHANNEL_ID, local_discord
from tests.bot.operations.test_process import on_discord
from tests.fakes import Script, ScriptedEngine

DAY_S = 86400.0
RESTART_S = 4 * 3600.0
"""Of the day."""
HOURS = (2, 1, 1, 1, 1, 2, 3, 5, 7, 8, 8, 9, 9, 8, 8, 8, 9, 10, 12, 14, 15, 13, 9, 5)
"""How much is asked in each hour of a day."""
NUM_CHANNELS, NUM_PEOPLE = 200, 400
AT_ONCE, MOST_AT_ONCE = 0.04, 5
"""Of questions, those that others follow within five seconds in the same channel; and with those how many."""
LENGTHS = ((4, 1), (6, 8), (10, 16), (8, 75), (24, 75))
"""Of answers: pieces, and words in each. The last two take several messages, and a file."""
SHARES = (30, 30, 25, 10, 5)
STEPS = 700
"""Of the event loop, within which a kill comes after a question."""
AGAIN = 0.15
"""Of the lives after a kill are killed while they repair."""
OUTAGES_A_WEEK, OUTAGE_S, RESUMABLE_S = 2, (10.0, 3600.0), 180.0
MOST_BEFORE_S = 8.0
"""From a question to an outage: each comes while something is answered."""
LOST_SHARE = 0.002
GOAL_S = 60.0
UNSURE_S = 10.0
"""Before a kill or an outage: who asks then may not have been heard."""
MOST_GROWTH = 1.05
"""Of the largest database and process from the first half to the second, once texts are let go as fast as
they come."""
READ_MESSAGES = 24
"""Of a conversation, for a question: 200 would take a fifth of the time, and the engine here needs none."""
SPEED = 20.0
"""Of the real process, whose time passes so many times faster."""
RETENTION_DAYS = 30
MONTH = 30
"""Days."""
KEPT_MESSAGES, KEPT_S = 6, 10 * DAY_S
"""Messages of each channel that stay on the simulated Discord once all was looked at."""


def respond(dialog: Sequence[ChatMessage]) -> Script:
    """Answer with words that tell which question they are of; with several messages' worth now and then."""
    question = dialog[-1].content.split()[-1]
    random = Random(question)
    ((num_pieces, size),) = random.choices(LENGTHS, SHARES)
    pieces = [f"{question}.{number} " * size for number in range(num_pieces)]
    return Script(pieces, delay_s=random.uniform(0.05, 0.6))


class YearEngine(ScriptedEngine):
    """A scripted engine that remembers nothing of what it answered."""

    def __init__(self) -> None:
        super().__init__(respond=respond)

    def fit_prompt(
        self,
        dialog: Sequence[ChatMessage],
        max_prompt_tokens: int,
        *,
        answer_so_far: str = "",
        thinking: bool | None = None,
    ) -> Prompt:
        """Take the question alone: what was said before changes nothing here."""
        return super().fit_prompt(
            dialog[-1:], max_prompt_tokens, answer_so_far=answer_so_far, thinking=thinking
        )

    def forget(self) -> None:
        """Forget all but what runs."""
        self.dialogs.clear()
        self.params.clear()
        self.generations[:] = [one for one in self.generations if one.completion is None]
        self._fitted.clear()


@dataclass(frozen=True, slots=True)
class Plan:
    """When what happens, in seconds since 1970."""

    asked_s: Sequence[float]
    channels: Sequence[int]
    killed: frozenset[int]
    """Numbers of questions after which the bot is killed."""
    outages: Sequence[tuple[float, float]]


def plan(days: int, num_questions: int, num_kills: int, seed: int) -> Plan:
    """Make a plan."""
    random = np.random.default_rng(seed)
    weights = np.array(HOURS) / sum(HOURS)
    hours = random.choice(24, num_questions, p=weights) + random.random(num_questions)
    asked = np.sort(START_S + random.integers(0, days, num_questions) * DAY_S + hours * 3600)
    shares = 1 / np.arange(1, NUM_CHANNELS + 1) ** 1.1
    channels = 1000 + random.choice(NUM_CHANNELS, num_questions, p=shares / shares.sum())
    for first in random.choice(num_questions - MOST_AT_ONCE, round(AT_ONCE * num_questions), replace=False):
        several = slice(first + 1, first + random.integers(2, MOST_AT_ONCE))
        asked[several] = asked[first] + np.sort(random.uniform(0, 5, len(asked[several])))
        channels[several] = channels[first]
    order = np.argsort(asked, kind="stable")
    asked, channels = asked[order], channels[order]
    killed = random.choice(num_questions, min(num_kills, num_questions), replace=False)
    num_outages = round(OUTAGES_A_WEEK * days / 7)
    starts = np.sort(random.choice(asked, num_outages) + random.uniform(0.0, MOST_BEFORE_S, num_outages))
    lengths = np.exp(random.uniform(np.log(OUTAGE_S[0]), np.log(OUTAGE_S[1]), num_outages))
    return Plan(
        asked.tolist(),
        channels.tolist(),
        frozenset(killed.tolist()),
        list(zip(starts.tolist(), lengths.tolist(), strict=True)),
    )


@dataclass
class Year:
    """What happened so far."""

    world: World
    plan: Plan
    end_s: float
    next_question: int = 0
    next_outage: int = 0
    away_until_s: float = 0.0
    next_restart_s: float = START_S + RESTART_S
    verified_up_to: int = 0
    verified: set[int] = field(default_factory=set)
    """Answers above that."""
    asked: dict[int, float] = field(default_factory=dict)
    """When questions were asked of which it is not known that they are stored."""
    deaf: list[tuple[float, float]] = field(default_factory=list)
    """From when to when nobody may have heard questions."""
    num_asked: int = 0
    num_answers: int = 0
    num_killed: int = 0
    num_restarts: int = 0
    num_presses: int = 0
    faults: list[str] = field(default_factory=list)
    returned_s: list[float] = field(default_factory=list)
    """From Discord's return to the bot's, after each outage that the bot lived through."""
    repaired_s: list[float] = field(default_factory=list)
    """From the bot's return, or start, until all that had ended was seen to be shown as stored."""
    sizes: list[tuple[float, float]] = field(default_factory=list)
    """Megabytes of the database and of the process, once a day."""

    def run(self) -> None:
        """Let the whole of it happen."""
        was_killed = False
        while self.world.now_s < self.end_s:
            random = self.world.random
            is_hit_again = was_killed and random.random() < AGAIN
            killed_at = random.randrange(1, STEPS) if is_hit_again else None
            was_killed = False
            if self.world.now_s < self.away_until_s:  # the service manager starts it until it stays
                self.world.now_s = self.away_until_s + self.world.random.uniform(0.0, 10.0)
            self.world.is_away = False
            try:
                if self.world.live(self.people, killed_at):
                    self.num_restarts += 1
                    self.look_at_all()
                else:
                    self.num_killed += 1
                    was_killed = True
            except StartError:
                pass  # the service manager starts it once more
            self.deaf.append((self.world.now_s - UNSURE_S, float("inf")))
            self.world.now_s += self.world.random.uniform(1.0, 20.0)

    async def people(self, stop: asyncio.Event) -> None:
        """Do what people and the world do until the next restart."""
        client, loop = self.world.client, self.world.loop
        assert client is not None
        assert loop is not None
        engine = client.chat.engine
        await client.wait_until_ready()
        self._hears_again()
        while self.next_question < len(self.plan.asked_s) and self._asked_s < loop.now_s:
            self.next_question += 1  # nobody was there to see it
        checks = {asyncio.create_task(self.check())}
        until_s = min(self.next_restart_s, self.end_s)
        while (now_s := loop.now_s) < until_s:
            outage_s = self._outage_s
            event_s = min(self._asked_s, outage_s, until_s)
            await asyncio.sleep(max(0.0, event_s - now_s))
            if event_s == outage_s:
                self.next_outage += 1
                checks.add(asyncio.create_task(self.outage(*self.plan.outages[self.next_outage - 1])))
            elif event_s == self._asked_s:
                self.ask()
                assert isinstance(engine, YearEngine)
                engine.forget()
        await asyncio.wait(checks)
        for check in checks:
            check.result()
        await _until(lambda: not client.chat.num_running and not client.chat.num_waiting)
        self.next_restart_s += DAY_S
        stop.set()

    @property
    def _asked_s(self) -> float:
        asked = self.plan.asked_s
        return asked[self.next_question] if self.next_question < len(asked) else float("inf")

    @property
    def _outage_s(self) -> float:
        outages = self.plan.outages
        return outages[self.next_outage][0] if self.next_outage < len(outages) else float("inf")

    def ask(self) -> None:
        """Let somebody ask, and some press a button below what is there."""
        loop, random = self.world.loop, self.world.random
        assert loop is not None
        number, self.next_question = self.next_question, self.next_question + 1
        channel_id = self.plan.channels[number]
        question_id = self.world.place.ask(f"q{number}", channel_id, 10 + random.randrange(NUM_PEOPLE))
        self.asked[question_id] = loop.now_s
        self.num_asked += 1
        if random.random() < 0.05:
            loop.call_later(random.uniform(1, 30), self.press, channel_id)
        if number in self.plan.killed:
            loop.killed_at = loop.num_steps + random.randrange(1, STEPS)

    def press(self, channel_id: int) -> None:
        """Press the first button of the newest message that has one: Stop, or Regenerate."""
        for message in reversed(self.world.place.ours(channel_id)):
            if ids := buttons(message):
                self.num_presses += 1
                self.world.place.press(int(message["id"]), ids[0])
                return

    async def outage(self, start_s: float, length_s: float) -> None:
        """Let Discord be away for a while, then see that all is made good."""
        loop, place, random = self.world.loop, self.world.place, self.world.random
        assert loop is not None
        if start_s + length_s < loop.now_s:
            return
        self.world.is_away, self.away_until_s = True, start_s + length_s
        self.deaf.append((loop.now_s - UNSURE_S, float("inf")))
        place.drop(1006)
        await asyncio.sleep(max(0.0, self.away_until_s - loop.now_s))
        if length_s > RESUMABLE_S and random.random() < 0.8:
            place.sessions.clear()
        self.world.is_away = False
        num_connects = len(place.connected_at)
        await _until(lambda: len(place.connected_at) > num_connects)
        self.returned_s.append(loop.now_s - self.away_until_s)
        self._hears_again(UNSURE_S)
        await self.check()

    async def check(self) -> None:
        """See that what has ended by now is shown as it is stored within `GOAL_S`."""
        loop = self.world.loop
        assert loop is not None
        began_s, ended = loop.now_s, self._ended() - self.verified
        while found := self._differences(ended):
            if self.world.is_away:
                return
            if loop.now_s - began_s > GOAL_S:
                self.faults += [
                    f"after {GOAL_S:.0f} s, answer {one.answer_id}: {one.text[:300]}" for one in found
                ]
                return
            await asyncio.sleep(1.0)
        self.verified |= ended
        self.repaired_s.append(loop.now_s - began_s)

    def _ended(self) -> frozenset[int]:
        with closing(sqlite3.connect(f"file:{self.world.database}?mode=ro", uri=True)) as connection:
            rows = connection.execute(
                "SELECT id FROM messages WHERE role = 'assistant' AND state <> 'pending' AND id > ?",
                (self.verified_up_to,),
            )
            return frozenset(row[0] for row in rows)

    def _differences(self, ended: frozenset[int]) -> list[Difference]:
        if not ended:
            return []
        found = differences(self.world.place, self.world.database, above=min(ended) - 1, up_to=max(ended))
        # An answer that is just being made again is not the one that had ended.
        return [one for one in found if one.answer_id in ended and one.text != "it is pending"]

    def look_at_all(self) -> None:
        """After the bot has ended by itself: see that there is no difference at all, then forget the old."""
        database, place = self.world.database, self.world.place
        if not self.world.is_away:
            found = differences(place, database, above=self.verified_up_to)
            self._note("at a restart", found)
            ended = self._ended()
            self.num_answers += len(ended)
            self.verified_up_to = max(ended, default=self.verified_up_to)
            self.verified.clear()
            self._look_for_unheard()
            for channel_id in place.channel_ids:
                for message in _old(place.of(channel_id), self.world.now_s - KEPT_S):
                    del place.messages[int(message["id"])]
        self.sizes.append((database.stat().st_size / 1e6, _resident_mb()))
        if len(self.sizes) % 10 == 0:
            done = f"{len(self.sizes)} days, {self.num_killed} kills, {len(self.faults)} differences"
            print(done, f"{time.process_time():.0f} s", *self.faults[-3:], file=sys.stderr, flush=True)

    def _look_for_unheard(self) -> None:
        """See that each question is stored, or was refused, or came when nobody was there."""
        with closing(sqlite3.connect(f"file:{self.world.database}?mode=ro", uri=True)) as connection:
            stored = {row[0] for row in connection.execute("SELECT discord_id FROM discord_messages")}
        replied = {
            int((message.get("message_reference") or {}).get("message_id", 0))
            for message in self.world.place.ours()
        }
        for question_id in self.asked.keys() - stored - replied:
            at_s = self.asked[question_id]
            if not any(from_s <= at_s <= to_s for from_s, to_s in self.deaf):
                self.faults.append(f"at a restart: question {question_id} at {at_s:.0f} has no answer")
        self.asked.clear()
        self.deaf = [(from_s, to_s) for from_s, to_s in self.deaf if to_s == float("inf")]

    def _hears_again(self, in_s: float = 0.0) -> None:
        assert self.world.loop is not None
        until_s = self.world.loop.now_s + in_s
        self.deaf = [(from_s, min(to_s, until_s)) for from_s, to_s in self.deaf]

    def _note(self, when: str, found: Sequence[Difference]) -> None:
        self.faults += [f"{when}, answer {one.answer_id}: {one.text[:300]}" for one in found]


class Errors(logging.Handler):
    """Keeps what goes wrong unexpectedly, wherever it is: nothing of that is part of a good year."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        fault = record.exc_info[1] if record.exc_info else None
        self.seen[record.getMessage() if fault is None else describe_fault(fault)] += 1


def _old(messages: Sequence[Payload], before_s: float) -> Sequence[Payload]:
    """Return what of a channel's messages nobody needs any more: never only a part of an answer."""
    oldest_kept = (int(before_s * 1000) - EPOCH_MS) << 22
    num_old = sum(int(message["id"]) < oldest_kept for message in messages)
    num_old = max(num_old, len(messages) - KEPT_MESSAGES)
    while num_old > 0 and is_ours(messages[num_old - 1]) and not buttons(messages[num_old - 1]):
        num_old -= 1
    return messages[: max(num_old, 0)]


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - virtual time costs nothing
        await asyncio.sleep(0.5)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def make(folder: Path, the_plan: Plan, days: int, seed: int) -> Year:
    """Let a year happen and return what came of it."""
    world = World(folder, range(1000, 1000 + NUM_CHANNELS), YearEngine, seed)
    world.keeping = Keeping(retention_days=RETENTION_DAYS)
    world.lost_share = LOST_SHARE
    for module in (answering, prompting):
        setattr(module, "MAX_MESSAGES", READ_MESSAGES)  # noqa: B010 - a constant of theirs
    year = Year(world, the_plan, START_S + days * DAY_S)
    with in_world(world):
        year.run()
    return year


async def kill_processes(folder: Path, num_kills: int, seed: int) -> list[str]:
    """Kill the real process so often with SIGKILL while it answers; return what is not shown as stored."""
    random, faults = Random(seed), []
    channel_ids = range(CHANNEL_ID + 1, CHANNEL_ID + 6)
    async with local_discord(*channel_ids) as place:
        for number in range(num_kills + 1):
            async with on_discord(place, folder, speed=SPEED) as bot:
                await bot.until_logged("Ready: connected to Discord as Llamacord")
                end_s = time.monotonic() + (GOAL_S + 60.0) / SPEED
                while found := differences(place, folder / "bot.sqlite3"):
                    if time.monotonic() > end_s:
                        faults += [
                            f"after kill {number}, answer {one.answer_id}: {one.text[:300]}" for one in found
                        ]
                        break
                    await asyncio.sleep(0.05)
                if number == num_kills:
                    break
                for channel_id in channel_ids:
                    place.ask(f"{random.choice((5, 40, 300))} words", channel_id)
                    await asyncio.sleep(random.uniform(0.0, 0.1))
                await asyncio.sleep(random.expovariate(1 / 0.4))
                bot.process.kill()
                await bot.exit_code()
    return faults


def report(year: Year, seconds: float) -> bool:
    """Print what came of it; return whether all goals were met."""
    place, sizes = year.world.place, np.array(year.sizes or [(0.0, 0.0)])
    until_back, until_shown = (
        " / ".join(f"{one:.0f}" for one in np.percentile(times or [0.0], [50, 99, 100]))
        for times in (year.returned_s, year.repaired_s)
    )
    print_table(
        f"A made year, {seconds:.0f} s",
        ["", "figure"],
        [
            ["questions asked", f"{year.num_asked:,}"],
            ["answers looked at", f"{year.num_answers:,}"],
            ["buttons pressed", f"{year.num_presses:,}"],
            ["kills", f"{year.num_killed:,}"],
            ["places in our code where a kill came", f"{len(year.world.killed_in):,}"],
            ["restarts", f"{year.num_restarts:,}"],
            ["outages", f"{year.next_outage:,}"],
            ["back after an outage, s (median, 99 %, longest)", until_back],
            ["shown as stored after that, s (median, 99 %, longest)", until_shown],
            ["new sessions a day", f"{len(place.identified_at) / len(sizes):.1f}"],
            ["differences", f"{len(year.faults):,}"],
        ],
    )
    months = [sizes[start : start + MONTH].max(axis=0) for start in range(0, len(sizes), MONTH)]
    print_table(
        "The largest of each month, MB",
        ["month", "database", "process"],
        [[f"{number}", f"{one[0]:.1f}", f"{one[1]:.0f}"] for number, one in enumerate(months, 1)],
    )
    for fault in year.faults[:50]:
        print(fault)
    return not year.faults and not _has_grown(sizes)


def _has_grown(sizes: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> bool:
    """Tell whether database or process were larger in the second half, in a year in which that tells."""
    half = len(sizes) // 2
    if half < 2 * RETENTION_DAYS:
        return False
    first, second = sizes[:half].max(axis=0), sizes[half:].max(axis=0)
    return bool((second > first * MOST_GROWTH).any())


def main(arguments: Sequence[str]) -> int:
    """Make a year."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=1_200)
    parser.add_argument("--process-kills", type=int, default=0, help="besides, of the real process")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    errors = Errors()
    for name in ("bot", "storage"):
        logging.getLogger(name).addHandler(errors)
    logging.basicConfig(handlers=[logging.NullHandler()])
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llamacord-year-") as folder:
        the_plan = plan(options.days, options.questions, options.kills, options.seed)
        year = make(Path(folder), the_plan, options.days, options.seed)
        is_well = report(year, time.perf_counter() - began) and not errors.seen
    for error, number in errors.seen.most_common():
        print(f"{number} times:", error)
    if options.process_kills:
        with tempfile.TemporaryDirectory(prefix="llamacord-kills-") as folder:
            faults = asyncio.run(kill_processes(Path(folder), options.process_kills, options.seed))
        print(f"{options.process_kills} kills of the process: {len(faults)} differences", *faults, sep="\n")
        is_well = is_well and not faults
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
