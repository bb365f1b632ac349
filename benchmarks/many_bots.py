"""Several processes of one bot on one PostgreSQL, on a Discord that deals out shards and enforces limits.

    python -m benchmarks.many_bots
    python -m benchmarks.many_bots --processes 4 --servers 2000 --seconds 180
    python -m benchmarks.many_bots --sqlite

People ask in servers at random; now and then a process is killed and started anew, once the database is
restarted, and another process is started on shards that somebody has. With `--sqlite` one process has it all,
in a file, and is not killed. The bots run as they are; only the model is a script, which repeats the number
of the question. Prints what became of each question and what Discord saw. Ends with 1 where anything was
lost, doubled or shown elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from benchmarks.common import print_table
from benchmarks.sharded_discord import ShardedDiscord, sharded_discord
from tests.bot.operations.discord_api import Payload, is_ours
from tests.postgres_server import PostgresServer, programs

ROOT = Path(__file__).parents[1]
TOKEN = "MTIzNDU2Nzg5MDEyMzQ1Njc4.Gabcde.abcdefghijklmnopqrstuvwxyz0123456789AB"  # noqa: S105 - of nobody
WORDS, WORD_S = 24, 0.12
"""Of an answer."""
KILL_EVERY_S, ASK_PER_S = 20.0, 4.0
READY_S, QUIET_S = 600.0, 600.0
CUT = "was restarted"
"""What stands below an answer that a killed process left."""
REFUSAL = "Another process has shard"


def bot() -> int:
    """Be the program, with another Discord and a scripted engine."""
    from bot import models
    from bot.cli import main as run
    from engine.types import ChatMessage, Generation, Prompt, SamplingParams
    from tests.bot.operations.bot_process import SPEED, FastLoop, ProcessEngine
    from tests.fakes import Script, ScriptedEngine

    class EchoEngine(ProcessEngine):
        """Says the number of the question, words, and the number again."""

        def generate(self, prompt: Prompt, params: SamplingParams, **options: Any) -> Generation:
            question: ChatMessage = self._fitted[prompt.ids][-1]
            number = re.findall(r"#(\d+)", question.content)[-1]
            words = (f" word{n}" for n in range(WORDS))
            self.scripts = [Script((f"begin{number}", *words, f" end{number}"), delay_s=WORD_S)]
            return ScriptedEngine.generate(self, prompt, params, **options)

    Route.BASE = os.environ["DISCORD_API"]
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(os.environ["DISCORD_GATEWAY"])
    setattr(models, "Engine", EchoEngine)  # noqa: B010 - not a name that the module offers
    if SPEED > 1:
        asyncio.events.new_event_loop = FastLoop
    return run(["run"])


@dataclass
class Process:
    """One process of the bot, which may be started again and again in the same folder."""

    number: int
    folder: Path
    environment: dict[str, str]
    running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it."""
        with (self.folder / "log").open("ab") as log:
            self.running = None
            self.running = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.many_bots", "bot"),
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    async def kill(self) -> None:
        """Kill it, as a machine does that loses its power."""
        if self.running is not None and self.running.returncode is None:
            self.running.kill()
            await self.running.wait()

    async def stop(self) -> int:
        """Ask it to end, and wait."""
        assert self.running is not None
        if self.running.returncode is None:
            self.running.terminate()
        async with asyncio.timeout(60):
            return await self.running.wait()

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "log").read_text(encoding="utf-8")


@dataclass
class Asked:
    """One question, and whether somebody attended to its server when it was asked."""

    number: int
    server: int
    discord_id: int
    at_s: float
    was_attended: bool


@dataclass
class Fate:
    """What became of a question."""

    num_answers: int = 0
    is_whole: bool = False
    is_cut: bool = False
    is_refused: bool = False
    strange: list[str] = field(default_factory=list)


def made(folder: Path, number: int, discord: ShardedDiscord, **settings: str) -> Process:
    """Return a process with its settings, not yet started."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DISCORD_API": discord.url,
        "DISCORD_GATEWAY": discord.url.replace("http", "ws", 1) + "/gateway",
        "LLAMA_CACHE": str(folder / "cache"),
        "LOADING_S": "0",
        "SPEED": str(discord.speed),
        "DISCORD_TOKEN": TOKEN,
        "MODEL": str(folder / "model"),
        "MAX_CONCURRENT": "64",
        "MAX_QUEUE": "1000",
        "USER_PER_MINUTE": "0",
        "SERVER_PER_MINUTE": "0",
        **settings,
    }
    return Process(number, folder, environment)


@asynccontextmanager
async def postgres() -> AsyncIterator[PostgresServer]:
    """Run a server of our own."""
    folder = programs()
    assert folder is not None, "needs PostgreSQL"
    with tempfile.TemporaryDirectory(prefix="lc-pg-") as place:
        server = PostgresServer(folder, Path(place))
        await asyncio.to_thread(server.make)
        await asyncio.to_thread(server.start)
        try:
            yield server
        finally:
            await asyncio.to_thread(server.stop)


@dataclass
class Run:
    """People who ask, and what happens to the processes meanwhile."""

    discord: ShardedDiscord
    processes: Sequence[Process]
    random: random.Random
    asked: list[Asked] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    """How long shards were nobody's after a process was killed."""
    num_restarts: int = 0

    async def until(self, is_so: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Wait for something; return how long that took."""
        began_s = time.monotonic()
        while not is_so():
            if time.monotonic() - began_s > timeout_s:
                logs = "\n".join(f"--- {one.number}\n{one.log[-3000:]}" for one in self.processes)
                raise TimeoutError(f"{what}\n{logs}")
            await asyncio.sleep(0.1)
        return time.monotonic() - began_s

    def all_attended(self) -> bool:
        """Tell whether every server's messages come to somebody."""
        found = {one.shard_id for one in self.discord.sessions.values() if one.send is not None}
        return len(found) == self.discord.num_shards

    async def ask(self, seconds: float, per_s: float = ASK_PER_S) -> None:
        """Ask, one question after the other, each in a server where the one before it is long ago."""
        end_s = time.monotonic() + seconds
        servers: list[int] = []
        while time.monotonic() < end_s:
            if not servers:
                servers = list(range(len(self.discord.server_ids)))
                self.random.shuffle(servers)
            self.ask_in(servers.pop())
            await asyncio.sleep(self.random.expovariate(per_s))

    def ask_in(self, server: int) -> None:
        """Ask in a server."""
        number = len(self.asked)
        was_attended = self.discord.is_attended(server)
        discord_id = self.discord.ask(server, f"question #{number}", 1000 + number % 500)
        self.asked.append(Asked(number, server, discord_id, time.monotonic(), was_attended))

    async def supervise(self) -> None:
        """Start whoever has ended, as systemd or Kubernetes do: one may have found no database."""
        while True:
            await asyncio.sleep(0.5)
            for process in self.processes:
                if process.running is not None and process.running.returncode is not None:
                    self.num_restarts += 1
                    await process.start()

    async def kill_now_and_then(self, seconds: float, every_s: float) -> None:
        """Kill one process after the other, and start it again at once."""
        end_s = time.monotonic() + seconds
        number = 0
        while time.monotonic() + every_s <= end_s:
            await asyncio.sleep(every_s)
            process = self.processes[number % len(self.processes)]
            number += 1
            began_s = time.monotonic()
            await process.kill()
            await self.until(self.all_attended, READY_S, "the shards of a killed process")
            self.gaps_s.append(time.monotonic() - began_s)

    def fates(self) -> list[Fate]:
        """Return what became of each question."""
        fates = [Fate() for _ in self.asked]
        by_message = {one.discord_id: one for one in self.asked}
        for channel_id, ids in self.discord.by_channel.items():
            for message_id in ids:
                message = self.discord.messages[message_id]
                if is_ours(message):
                    self._judge(message, channel_id, by_message, fates)
        return fates

    def _judge(
        self, message: Payload, channel_id: int, by_message: dict[int, Asked], fates: list[Fate]
    ) -> None:
        text = message["content"]
        reference = int((message.get("message_reference") or {}).get("message_id", 0))
        asked = by_message.get(reference)
        numbers = {int(one) for one in re.findall(r"(?:begin|end)(\d+)", text)}
        if asked is None:
            for number in numbers:
                fates[number].strange.append(f"answers nothing: {text[:60]}")
            return
        fate = fates[asked.number]
        if self.discord.server_ids[asked.server] + 1 != channel_id or numbers - {asked.number}:
            fate.strange.append(f"is elsewhere, or another's: {text[:60]}")
        fate.num_answers += 1
        fate.is_whole |= f"end{asked.number}" in text
        fate.is_cut |= CUT in text
        fate.is_refused |= not numbers and CUT not in text

    def are_all_answered(self) -> bool:
        """Tell whether each question has its answer."""
        return all(fate.is_whole or fate.is_cut for fate in self.fates())

    def firsts_s(self) -> list[float]:
        """Return how long it took until something stood below each question that somebody attended to."""
        first: dict[int, float] = {}
        for ids in self.discord.by_channel.values():
            for message_id in ids:
                message = self.discord.messages[message_id]
                reference = int((message.get("message_reference") or {}).get("message_id", 0))
                first.setdefault(reference, message_id)
        known = [(first[one.discord_id], one) for one in self.asked if one.discord_id in first]
        return [((int(shown) - one.discord_id) >> 22) / 1000 for shown, one in known if one.was_attended]

    def report(self) -> bool:
        """Print what was seen; return whether all is well."""
        fates = self.fates()
        firsts = self.firsts_s()
        counts = Counter(
            "strange" if fate.strange else
            "doubled" if fate.num_answers > 1 else
            "whole" if fate.is_whole else
            "cut by a kill, marked" if fate.is_cut else
            "refused" if fate.is_refused else
            "lost"
            for fate in fates
        )  # fmt: skip
        missed = sum(not one.was_attended for one in self.asked)
        rows: list[tuple[str, Any]] = [
            ("questions", len(fates)),
            ("asked while nobody attended", missed),
            *sorted(counts.items()),
            ("first words after, s (p50 / p99)", _percentiles(firsts)),
            ("restarts of processes", self.num_restarts),
            ("longest gap after a kill, s", f"{max(self.gaps_s, default=0):.1f} (of {len(self.gaps_s)})"),
            ("most requests in a second", _most_in_a_second(self.discord.request_times)),
            ("requests refused for the bot", self.discord.num_limited),
            ("requests refused for a channel", self.discord.num_limited_channels),
            ("sessions begun", sum(map(len, self.discord.identified.values()))),
            ("sessions begun too soon", self.discord.num_early),
            ("commands registered", self.discord.num_registered),
            ("unknown requests", ", ".join(sorted(self.discord.unknown)) or "none"),
        ]
        print_table("What became of it", ("", ""), [(name, str(value)) for name, value in rows])
        for fate in fates:
            for sentence in fate.strange[:3]:
                print(sentence)
        for asked, fate in zip(self.asked, fates, strict=True):
            if fate.num_answers != 1 or not (fate.is_whole or fate.is_cut):
                print("  ", asked, fate)
                for message_id in self.discord.by_channel[self.discord.server_ids[asked.server] + 1]:
                    print("     ", self.discord.messages[message_id]["content"][-160:])
        is_good = not (counts["lost"] + counts["doubled"] + counts["strange"] + counts["refused"])
        return is_good and self.discord.num_registered == 1 and not self.discord.num_early


def _percentiles(values: Sequence[float]) -> str:
    if not values:
        return "none"
    return f"{np.percentile(values, 50):.2f} / {np.percentile(values, 99):.2f}"


def _most_in_a_second(times: Sequence[float]) -> int:
    return max(Counter(int(one) for one in times).values(), default=0)


async def play(options: argparse.Namespace) -> bool:
    """Play it all; return whether all is well."""
    async with sharded_discord(options.servers, options.shards) as discord:
        if options.sqlite:
            with tempfile.TemporaryDirectory() as place:
                settings = {
                    "DATABASE": str(Path(place, "bot.sqlite3")),
                    "SHARDS": f"0-{options.shards - 1}/{options.shards}",
                }
                return await _play(options, discord, [made(Path(place, "0"), 0, discord, **settings)], None)
        async with postgres() as server:
            await asyncio.to_thread(server.run, "CREATE DATABASE bots")
            each = options.shards // options.processes
            settings = {"DATABASE": server.address("bots").url, "SHARDS": f"{each} of {options.shards}"}
            with tempfile.TemporaryDirectory() as place:
                processes = [
                    made(Path(place, str(number)), number, discord, **settings)
                    for number in range(options.processes)
                ]
                return await _play(options, discord, processes, server)


async def _play(
    options: argparse.Namespace,
    discord: ShardedDiscord,
    processes: Sequence[Process],
    server: PostgresServer | None,
) -> bool:
    run = Run(discord, processes, random.Random(options.seed))
    try:
        for process in processes:
            await process.start()
        took_s = await run.until(run.all_attended, READY_S, "the first sessions")
        print(f"All {discord.num_shards} shards are attended to after {took_s:.1f} s", flush=True)
        work = [run.ask(options.seconds, options.per_second)]
        if server is not None:
            work.append(run.kill_now_and_then(options.seconds, options.kill_every))
            work.append(_restart(server, options.seconds * 0.6))
            work.append(second(processes[0], discord))
        supervising = asyncio.create_task(run.supervise())
        await asyncio.gather(*work)
        try:
            await run.until(run.are_all_answered, QUIET_S, "the last answers")
        except TimeoutError as error:
            print(str(error)[-6000:])
        supervising.cancel()
        for process in processes:
            assert await process.stop() == 0, process.log[-3000:]
    finally:
        for process in processes:
            await process.kill()
    num_faults = sum(process.log.count("Traceback") for process in processes)
    print(f"Tracebacks in the logs: {num_faults}")
    if num_faults or options.logs:
        for process in processes:
            print(f"--- {process.number}\n{process.log[-8000:]}")
    return run.report()


async def _restart(server: PostgresServer, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(2)
    await asyncio.to_thread(server.start)
    print("The database was restarted", flush=True)


async def second(process: Process, discord: ShardedDiscord) -> None:
    """Start another process on all shards, which somebody has, and see that it refuses."""
    settings = {**process.environment, "SHARDS": f"0-{discord.num_shards - 1}/{discord.num_shards}"}
    other = Process(99, process.folder.parent / "second", settings)
    other.folder.mkdir()
    await other.start()
    assert other.running is not None
    try:
        async with asyncio.timeout(100):
            code = await other.running.wait()
    finally:
        await other.kill()
    (sentence,) = [line for line in other.log.splitlines() if line.startswith("llamacord: ")]
    print(f"A second process on the same shards ended with {code}: {sentence}", flush=True)
    assert code == 1
    assert REFUSAL in sentence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="?", choices=["bot"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--servers", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--kill-every", type=float, default=KILL_EVERY_S)
    parser.add_argument("--per-second", type=float, default=ASK_PER_S)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sqlite", action="store_true")
    parser.add_argument("--logs", action="store_true")
    options = parser.parse_args(arguments)
    if options.role == "bot":
        return bot()
    return 0 if asyncio.run(play(options)) else 1


if __name__ == "__main__":
    sys.exit(main())
