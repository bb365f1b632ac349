"""A bot with 32 conversations of 4 turns over two servers of its model, some of which are killed meanwhile.

    python -m benchmarks.replicas
    python -m benchmarks.replicas --kill-every 20 --seconds 180
    python -m benchmarks.replicas --engine http://127.0.0.1:8000 --kill-every 20 --kill-command CMD

Without `--engine` it starts two servers of the default model itself, with a thread each. Prints, with and
without the session's name in the requests, how much of the prompts of later turns came from KV. With
`--kill-every` everybody goes on asking for so many seconds while a server is killed again and again (with
`--kill-command` by that command, which is run in a shell, else one after the other of our own, which is then
started again): whether each question was answered once, completely and in order, how long a reader saw
nothing new in an answer that broke off, and how many tokens going on with it had to compute.
Ends with 1 where an answer was lost, doubled, cut or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import default_model, print_table
from benchmarks.crowd import Crowd, Outcome, open_crowd
from bot.parameters import ChatParameters
from engine.remote.remote_engine import RemoteEngine, Servers
from engine.types import Completion, FinishReason, Generation, Prompt, SamplingParams
from storage.conversations import ConversationKind, ConversationRef, MessageState, Role
from tests.engine.remote.server_process import ServerProcess

MAX_TOKENS = 64
_FORGOTTEN_AFTER_S = 5.0
"""By then every replica has forgotten what a run before left."""
SYSTEM = (
    "You are the assistant of a server for people who like to build things at home. Be friendly and brief. "
    "Answer in the language of the question. Where you are not sure, say so. Never ask people for names, "
    "addresses or passwords. Where somebody asks for something dangerous, such as work on the mains, tell "
    "them to ask an electrician. Use lists only where they help, and code blocks for code."
)
"""As long as servers' own ones are."""
PAUSE_S = 0.02
TIMEOUT_S = 900.0
_ENDED = (FinishReason.STOP, FinishReason.LENGTH)


@dataclass
class Seen:
    """One answer as its reader saw it. is_later: not the first one of its conversation."""

    is_later: bool
    num_prompt: int
    completion: Completion | None = None
    first_s: float = 0.0
    gap_s: float = 0.0
    """The longest time between two pieces."""


class WatchedEngine(RemoteEngine):
    """A remote engine whose answers are timed. names_sessions: whether servers learn of conversations."""

    names_sessions = True

    def watch(self) -> list[Seen]:
        """Begin to note answers; return where."""
        self._known: set[str] = set()
        self.seen: list[Seen] = []
        return self.seen

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        session: str = "",
        tell: Callable[[int], object] | None = None,
    ) -> Generation:
        """Begin an answer, and note it."""
        shown = session if self.names_sessions else ""
        generation = super().generate(prompt, params, session=shown, tell=tell)
        seen = Seen(session in self._known, len(prompt.ids))
        self._known.add(session)
        self.seen.append(seen)
        return WatchedGeneration(generation, seen)


class WatchedGeneration:
    """One of its answers."""

    def __init__(self, generation: Generation, seen: Seen) -> None:
        self._generation = generation
        self._seen = seen
        self._began_s = time.perf_counter()
        self._last_s: float | None = None

    @property
    def completion(self) -> Completion | None:
        """See `Generation.completion`."""
        return self._generation.completion

    def cancel(self) -> None:
        """See `Generation.cancel`."""
        self._generation.cancel()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            piece = await anext(self._generation)
        except StopAsyncIteration:
            self._seen.completion = self._generation.completion
            raise
        now_s = time.perf_counter()
        if self._last_s is None:
            self._seen.first_s = now_s - self._began_s
        else:
            self._seen.gap_s = max(self._seen.gap_s, now_s - self._last_s)
        self._last_s = now_s
        return str(piece)


@dataclass(frozen=True)
class Figures:
    """What one run showed."""

    outcome: Outcome
    seen: Sequence[Seen]
    num_complete: int
    num_asked: int
    num_kills: int = 0

    @property
    def share_kept(self) -> float:
        """How much of the prompts of later turns came from KV, of answers that did not break off."""
        later = [
            one for one in self.seen if one.is_later and one.completion and not one.completion.num_breaks
        ]
        cached = sum(one.completion.usage.num_cached_tokens for one in later if one.completion)
        return cached / max(sum(one.num_prompt for one in later), 1)

    @property
    def broken(self) -> list[Seen]:
        """Answers that broke off and were gone on with."""
        return [one for one in self.seen if one.completion and one.completion.num_breaks]

    @property
    def is_good(self) -> bool:
        """Whether every question was answered once, completely and in order."""
        return self.outcome.is_perfect and self.num_complete == self.num_asked


@dataclass
class Killer:
    """Kills servers one after the other, and starts them again."""

    servers: Sequence[ServerProcess]
    every_s: float
    command: str = ""
    num_kills: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Go on for ever."""
        for number in itertools.count():
            await asyncio.sleep(self.every_s)
            self.num_kills += 1
            if self.command:
                process = await asyncio.create_subprocess_shell(self.command)
                await process.wait()
            else:
                server = self.servers[number % len(self.servers)]
                await server.kill()
                self._tasks.add(asyncio.ensure_future(server.start()))

    async def end(self) -> None:
        """Wait for those that are being started."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def converse(crowd: Crowd, num_turns: int, until_s: float = 0.0) -> None:
    """Let everybody ask, turn by turn, so many times and until a moment of `time.perf_counter`."""
    turn, order = 0, random.Random(1)
    while turn < num_turns or time.perf_counter() < until_s:
        order.shuffle(crowd.rooms)  # people ask when they like
        await crowd.ask((0,), PAUSE_S)
        await crowd.until_answered(TIMEOUT_S)
        turn += 1


async def count_complete(crowd: Crowd) -> int:
    """Return how many answers are stored as complete."""
    conversations, num_complete = crowd.client.chat.conversations, 0
    for room in crowd.rooms:
        ref = ConversationRef(room.channel.id, ConversationKind.CHANNEL, room.guild_id)
        messages = await conversations.recent(await conversations.open(ref), 10_000)
        answers = [one for one in messages if one.role is Role.ASSISTANT]
        num_complete += sum(one.state is MessageState.COMPLETE and bool(one.content) for one in answers)
    return num_complete


async def measure(
    options: argparse.Namespace, addresses: Sequence[str], *, names_sessions: bool, killer: Killer | None
) -> Figures:
    """Have everybody ask, and look what came of it."""
    replicas = tuple(filter(None, options.replicas.split(",")))
    with tempfile.TemporaryDirectory(prefix="llamacord-replicas-") as folder:
        place = Servers(
            tuple(addresses), Path(folder), key=options.key, replicas=replicas, secret=b"benchmark"
        )
        async with await WatchedEngine.open(place) as engine:
            assert isinstance(engine, WatchedEngine)
            engine.drop_idle_cache()
            await asyncio.sleep(_FORGOTTEN_AFTER_S)
            engine.names_sessions = names_sessions
            seen = engine.watch()
            parameters = ChatParameters(
                system_prompt=SYSTEM,
                sampling=SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=MAX_TOKENS),
            )
            crowd_of = open_crowd(engine, Path(folder), options.rooms, parameters=parameters, is_echoed=False)
            async with crowd_of as crowd:
                until_s = time.perf_counter() + (options.seconds if killer is not None else 0.0)
                killing = asyncio.ensure_future(killer.run()) if killer is not None else None
                try:
                    await converse(crowd, options.turns, until_s)
                finally:
                    if killing is not None and killer is not None:
                        killing.cancel()
                        await killer.end()
                outcome = await crowd.outcome()
                num_complete = await count_complete(crowd)
    num_kills = 0 if killer is None else killer.num_kills
    return Figures(outcome, seen, num_complete, outcome.num_asked, num_kills)


@contextlib.asynccontextmanager
async def own_servers(number: int, threads: int) -> AsyncIterator[list[ServerProcess]]:
    """Start servers of the default model; end them afterwards."""
    with tempfile.TemporaryDirectory(prefix="llamacord-servers-") as folder:
        servers = [
            ServerProcess(default_model(), Path(folder), threads=threads, MAX_CONCURRENT=16, MAX_QUEUE=256)
            for _ in range(number)
        ]
        try:
            for server in servers:
                await server.start()
            yield servers
        finally:
            for server in servers:
                await server.kill()


def report(named: Sequence[tuple[str, Figures]]) -> None:
    """Print what each run showed."""
    rows: list[list[str]] = []

    def row(name: str, value: Callable[[Figures], Any]) -> None:
        rows.append([name, *(str(value(figures)) for _, figures in named)])

    row("Questions", lambda f: f.num_asked)
    row(
        "Answered once, complete, in order",
        lambda f: "yes" if f.is_good else f"no: {f.outcome}, {f.num_complete}",
    )
    row("Prompt tokens of later turns from KV", lambda f: f"{f.share_kept:.1%}")
    row("First piece, median s", lambda f: f"{_median([one.first_s for one in f.seen]):.2f}")
    row("Servers killed", lambda f: f.num_kills)
    row("Answers that broke off and went on", lambda f: len(f.broken))
    row("Their longest gap, s", lambda f: f"{max((one.gap_s for one in f.broken), default=0.0):.2f}")
    row(
        "Longest gap of the others, s",
        lambda f: f"{max((one.gap_s for one in f.seen if one not in f.broken), default=0.0):.2f}",
    )
    row("Tokens computed to go on, median and most", lambda f: _costs(f))
    print_table("A bot over several servers", ["", *(name for name, _ in named)], rows)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def _costs(figures: Figures) -> str:
    costs = [one.completion.usage.num_computed_tokens for one in figures.broken if one.completion]
    return f"{_median(costs):.0f}, {max(costs, default=0)}"


async def main(options: argparse.Namespace) -> int:
    """Measure, print, and return the exit code."""
    async with contextlib.AsyncExitStack() as stack:
        servers: list[ServerProcess] = []
        addresses = [one.strip().rstrip("/") for one in options.engine.split(",") if one.strip()]
        if not addresses:
            servers = await stack.enter_async_context(own_servers(options.servers, options.threads))
            addresses = [server.address for server in servers]
        if options.kill_every:
            killer = Killer(servers, options.kill_every, options.kill_command)
            named = [("killed", await measure(options, addresses, names_sessions=True, killer=killer))]
        else:
            named = [
                (name, await measure(options, addresses, names_sessions=names_sessions, killer=None))
                for name, names_sessions in (("with sessions", True), ("without", False))
            ]
    report(named)
    return 0 if all(figures.is_good for _, figures in named) else 1


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="", help="addresses of servers or of a balancer, with commas")
    parser.add_argument("--replicas", default="", help="behind a balancer: the servers' own addresses")
    parser.add_argument("--key", default="", help="what the servers know us by")
    parser.add_argument("--servers", type=int, default=2, help="how many are started here")
    parser.add_argument("--threads", type=int, default=1, help="of each of them")
    parser.add_argument("--rooms", type=int, default=32, help="conversations")
    parser.add_argument("--turns", type=int, default=4, help="questions in each")
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds between two kills")
    parser.add_argument("--seconds", type=float, default=180.0, help="how long it is killed and asked")
    parser.add_argument(
        "--kill-command", default="", help="kills a server, which something else starts again"
    )
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    sys.exit(asyncio.run(main(read_arguments())))
