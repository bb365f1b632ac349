"""A year of a server in virtual time: restarts, outages, kills, and whether what is shown is what is stored.

    python -m benchmarks.made_year
    python -m benchmarks.made_year --days 7 --questions 2000 --kills 100

Two hundred channels that are asked in as Zipf has it, by day and by night; a restart every day, outages of
10 seconds to an hour, requests that are lost or carried out without an answer, and kills at random steps of
the event loop while answers are under way. After every kill and every outage all that has ended must be
shown as it is stored within a minute of the connection's return, and once a day all messages are looked at:
none of nobody, none between another answer's parts, none that offers to stop what has ended. Prints what
came of it. Ends with 1 where a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.common import print_table
from benchmarks.virtual_life import START_S, World, in_world
from bot.on_discord.connection import StartError
from bot.privacy import Keeping
from engine.types import ChatMessage, Prompt
from tests.bot.operations.comparing import Difference, buttons, differences
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
STEPS = 700
"""Of the event loop, within which a kill comes after a question."""
AGAIN = 0.15
"""Of the lives after a kill are killed while they repair."""
OUTAGES_A_WEEK, OUTAGE_S, RESUMABLE_S = 2, (10.0, 3600.0), 180.0
LOST_SHARE = 0.002
GOAL_S = 60.0
SPEED = 20.0
"""Of the real process, whose time passes so many times faster."""
RETENTION_DAYS = 30
KEPT_MESSAGES, KEPT_S = 6, 10 * DAY_S
"""Messages of each channel that stay on the simulated Discord once all was looked at."""


def respond(dialog: Sequence[ChatMessage]) -> Script:
    """Answer with words that tell which question they are of; with several messages' worth now and then."""
    question = dialog[-1].content.split()[-1]
    random = Random(question)
    num_pieces, size = random.choice(((4, 1), (12, 4), (20, 8), (30, 60)))
    pieces = [f"{question}.{number} " * size for number in range(num_pieces)]
    return Script(pieces, delay_s=random.uniform(0.05, 1.0))


class YearEngine(ScriptedEngine):
    """A scripted engine that remembers nothing of what it answered."""

    def __init__(self) -> None:
        super().__init__(respond=respond)

    def fit_prompt(
        self, dialog: Sequence[ChatMessage], max_prompt_tokens: int, *, answer_so_far: str = ""
    ) -> Prompt:
        """Take the question alone: what was said before changes nothing here."""
        return super().fit_prompt(dialog[-1:], max_prompt_tokens, answer_so_far=answer_so_far)

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
    starts = np.sort(START_S + random.random(num_outages) * days * DAY_S)
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
    num_asked: int = 0
    num_killed: int = 0
    num_restarts: int = 0
    num_presses: int = 0
    faults: list[str] = field(default_factory=list)
    repaired_s: list[float] = field(default_factory=list)
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
            if self.num_killed % 10 == 0:
                gc.collect()
            self.world.now_s += self.world.random.uniform(1.0, 20.0)

    async def people(self, stop: asyncio.Event) -> None:
        """Do what people and the world do until the next restart."""
        client, loop = self.world.client, self.world.loop
        assert client is not None
        assert loop is not None
        engine = client.chat.engine
        await client.wait_until_ready()
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
        self.world.place.ask(f"q{number}", channel_id, 10 + random.randrange(NUM_PEOPLE))
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
        place.drop(1006)
        await asyncio.sleep(max(0.0, self.away_until_s - loop.now_s))
        if length_s > RESUMABLE_S and random.random() < 0.8:
            place.sessions.clear()
        self.world.is_away = False
        num_connects = len(place.connected_at)
        await _until(lambda: len(place.connected_at) > num_connects)
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
            self.verified_up_to = max(self._ended(), default=self.verified_up_to)
            self.verified.clear()
            old = (int((self.world.now_s - KEPT_S) * 1000) - 1420070400000) << 22
            for channel_id in place.channel_ids:
                here = [
                    one for one, message in place.messages.items() if message["channel_id"] == str(channel_id)
                ]
                for message_id in here:
                    if message_id < old or message_id not in sorted(here)[-KEPT_MESSAGES:]:
                        del place.messages[message_id]
        self.sizes.append((database.stat().st_size / 1e6, _resident_mb()))
        if len(self.sizes) % 30 == 0:
            done = f"{len(self.sizes)} days, {self.num_killed} kills, {len(self.faults)} differences"
            print(done, *self.faults[-3:], file=sys.stderr, flush=True)

    def _note(self, when: str, found: Sequence[Difference]) -> None:
        self.faults += [f"{when}, answer {one.answer_id}: {one.text[:300]}" for one in found]


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
    half = len(year.sizes) // 2
    repaired = np.array(year.repaired_s or [0.0])
    halves = (year.sizes[:half], year.sizes[half:])
    first, second = (np.array(part or [(0.0, 0.0)]).max(axis=0) for part in halves)
    until_shown = " / ".join(f"{one:.0f}" for one in np.percentile(repaired, [50, 99, 100]))
    print_table(
        f"A made year, {seconds:.0f} s",
        ["", "figure"],
        [
            ["questions asked", f"{year.num_asked:,}"],
            ["buttons pressed", f"{year.num_presses:,}"],
            ["kills", f"{year.num_killed:,}"],
            ["places in our code where a kill came", f"{len(year.world.killed_in):,}"],
            ["restarts", f"{year.num_restarts:,}"],
            ["outages", f"{year.next_outage:,}"],
            ["shown as stored after, s (median, 99 %, longest)", until_shown],
            ["new sessions a day", f"{len(year.world.place.identified_at) / max(1, len(year.sizes)):.1f}"],
            ["database, largest in each half, MB", f"{first[0]:.1f} / {second[0]:.1f}"],
            ["process, largest in each half, MB", f"{first[1]:.0f} / {second[1]:.0f}"],
            ["differences", f"{len(year.faults):,}"],
        ],
    )
    for fault in year.faults[:50]:
        print(fault)
    return not year.faults


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
    logging.disable(logging.CRITICAL)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llamacord-year-") as folder:
        the_plan = plan(options.days, options.questions, options.kills, options.seed)
        year = make(Path(folder), the_plan, options.days, options.seed)
        is_well = report(year, time.perf_counter() - began)
    if options.process_kills:
        with tempfile.TemporaryDirectory(prefix="llamacord-kills-") as folder:
            faults = asyncio.run(kill_processes(Path(folder), options.process_kills, options.seed))
        print(f"{options.process_kills} kills of the process: {len(faults)} differences", *faults, sep="\n")
        is_well = is_well and not faults
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
