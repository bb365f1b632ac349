"""What it costs to ask the engine over HTTP instead of in its own process.

    python -m benchmarks.serving --rounds 3

One process holds the engine and serves it. By turns it is asked from inside, and by this process over the
loopback; what the event loop's thread takes of a processor is told per token. This process takes some too,
on the same processors: that is the client's, and is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.common import default_model, print_table, random_prompt
from engine.engine import Engine, EngineOptions
from engine.serving.app import App, make_app
from engine.serving.server import serve
from engine.serving.service import ServingSettings
from engine.types import SamplingParams

CASES = ((1, 96), (8, 64), (32, 48))
"""Conversations, and the tokens of each answer."""
PROMPT_TOKENS = 100
GOALS = "Goals: at most 5 % fewer tokens/s, at most 5 ms later."


@dataclass(frozen=True, slots=True)
class Took:
    """One round. first_s: of each answer, until its first piece. loop_s: CPU of the event loop's thread."""

    num_tokens: int
    seconds: float
    first_s: list[float]
    loop_s: float = 0.0
    client_s: float = 0.0


Ask = Callable[[int, int], Awaitable[tuple[float, int]]]
"""Asks with a seed for so many tokens; returns the time of the first piece and how many came."""


async def all_at_once(ask: Ask, num: int, num_tokens: int, seed: int) -> Took:
    """Ask `num` times at once."""
    began_s = time.perf_counter()
    found = await asyncio.gather(*(ask(seed + index, num_tokens) for index in range(num)))
    seconds = time.perf_counter() - began_s
    return Took(sum(count for _, count in found), seconds, [first - began_s for first, _ in found])


# The process with the engine. It reads a line for each thing to do, and answers with one.


async def hold(model: Path) -> None:
    """Serve, and do what standard input says: ask from inside, or tell how much CPU the loop took so far."""
    options = EngineOptions(max_concurrent=max(num for num, _ in CASES))
    async with await Engine.open(model, options) as engine:
        app = make_app(engine, ServingSettings())
        told = partial(print, flush=True)
        serving = asyncio.ensure_future(serve(app, "127.0.0.1", 0, on_ready=told))
        while line := await asyncio.to_thread(sys.stdin.readline):
            numbers = [int(word) for word in line.split()]
            if not numbers:
                print(time.thread_time(), flush=True)
                continue
            before_s = time.thread_time()
            took = await all_at_once(lambda seed, most: _ask_inside(app, seed, most), *numbers)
            print(json.dumps(asdict(took) | {"loop_s": time.thread_time() - before_s}), flush=True)
        serving.cancel()
        await asyncio.wait({serving})


async def _ask_inside(app: App, seed: int, num_tokens: int) -> tuple[float, int]:
    service = app.service
    prompt, params = random_prompt(seed, PROMPT_TOKENS), _params(num_tokens)
    first_s = 0.0
    async with service.room.generating(service.engine, prompt, params, ("a", str(seed))) as generation:
        async for _ in generation:
            first_s = first_s or time.perf_counter()
    if generation.completion is None:
        raise RuntimeError("The answer ended without a completion.")
    return first_s, generation.completion.usage.num_new_tokens


def _params(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=num_tokens)


# The client.


class Holder:
    """The process with the engine, from outside."""

    def __init__(self, model: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.serving", "--hold", str(model)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._read().rpartition(":")[2])

    def inside(self, *numbers: int) -> Took:
        """Have it ask from inside."""
        return Took(**json.loads(self._ask(" ".join(map(str, numbers)))))

    def over_http(self, num: int, num_tokens: int, seed: int) -> Took:
        """Ask it over HTTP."""
        loop_s, client_s = float(self._ask("")), time.process_time()
        took = asyncio.run(all_at_once(self._ask_over_http, num, num_tokens, seed))
        client_s = time.process_time() - client_s
        loop_s = float(self._ask("")) - loop_s
        return Took(took.num_tokens, took.seconds, took.first_s, loop_s, client_s)

    async def _ask_over_http(self, seed: int, num_tokens: int) -> tuple[float, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        asked = {"prompt": random_prompt(seed, PROMPT_TOKENS).ids, "max_tokens": num_tokens, "stream": True}
        body = json.dumps(asked | {"temperature": 0, "repetition_penalty": 1}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        first_s, last = 0.0, b""
        while (line := await reader.readline()) and b"[DONE]" not in line:
            if line.startswith(b"data: "):
                first_s, last = first_s or time.perf_counter(), line
        writer.close()
        return first_s, int(json.loads(last[6:])["llamacord"]["num_new_tokens"])

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> str:
        if self._process.stdin is None:
            raise RuntimeError("The process has no pipes.")
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        line = self._process.stdout.readline().strip() if self._process.stdout is not None else ""
        if not line:
            raise RuntimeError("The process with the engine has ended; it says why above.")
        return line


def _compare(holder: Holder, num: int, num_tokens: int, num_rounds: int) -> list[str]:
    inside, outside = [], []
    for number in range(num_rounds):
        seed = 1000 * (number + 1) + 100_000 * num
        sides = [
            lambda seed=seed: inside.append(holder.inside(num, num_tokens, seed)),
            lambda seed=seed: outside.append(holder.over_http(num, num_tokens, seed + 500)),
        ]
        for side in sides if number % 2 else reversed(sides):
            side()
    speeds = [[took.num_tokens / took.seconds for took in side] for side in (inside, outside)]
    ratio = statistics.median(there / here for here, there in zip(*speeds, strict=True))
    all_first = [[s for took in side for s in took.first_s] for side in (inside, outside)]
    later = [
        1e3 * (statistics.median(there.first_s) - statistics.median(here.first_s))
        for here, there in zip(inside, outside, strict=True)
    ]
    cpu_us = [
        1e6 * sum(took.loop_s for took in side) / sum(took.num_tokens for took in side)
        for side in (inside, outside)
    ]
    client_us = 1e6 * sum(took.client_s for took in outside) / sum(took.num_tokens for took in outside)
    return [
        str(num),
        *(f"{statistics.median(side):.1f}" for side in speeds),
        f"{ratio - 1:+.1%}",
        *(f"{1e3 * statistics.median(side):.1f}" for side in all_first),
        f"{statistics.median(later):+.1f}",
        *(f"{us:.0f}" for us in cpu_us),
        f"{client_us:.0f}",
    ]


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="folder of a converted model; the default one")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides, one after the other")
    parser.add_argument("--only", type=int, help="so many conversations alone")
    parser.add_argument("--hold", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hold:
        asyncio.run(hold(arguments.hold))
        return
    holder = Holder(arguments.model or default_model())
    try:
        holder.inside(2, 8, 1)
        holder.over_http(2, 8, 11)
        cases = [case for case in CASES if arguments.only in (None, case[0])]
        rows = [_compare(holder, *case, arguments.rounds) for case in cases]
    finally:
        holder.close()
    heads = ["conversations", "tokens/s inside", "over HTTP", "", "first ms inside", "over HTTP", "later"]
    print_table(
        "The engine over HTTP", [*heads, "loop us/token inside", "over HTTP", "client us/token"], rows
    )
    print(GOALS)


if __name__ == "__main__":
    main()
