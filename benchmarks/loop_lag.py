"""How late is a 10 ms timer on the event loop while eight conversations stream?

    python -m benchmarks.loop_lag --seconds 20

Prints percentiles of the lateness over the whole run, prompts being read included, with every piece of text
consumed on the loop as the bot does.
"""

from __future__ import annotations

import argparse
import asyncio
import time

import numpy as np

from benchmarks.common import answer, default_model, print_table, random_prompt, watch_lag
from engine.engine import Engine, EngineOptions
from engine.types import SamplingParams

NUM_CONVERSATIONS = 8
GOAL_P99_MS, GOAL_WORST_MS = 50, 250


async def _converse(engine: Engine, number: int, until: float) -> int:
    """Ask one question after the other; return the tokens generated."""
    num_tokens, turn = 0, 0
    while time.perf_counter() < until:
        prompt = random_prompt(1000 * number + turn, 300)
        params = SamplingParams(max_new_tokens=120, seed=turn)
        num_tokens += (await answer(engine, prompt, params)).usage.num_new_tokens
        turn += 1
    return num_tokens


async def measure(seconds: float, threads: int) -> tuple[list[float], float]:
    """Return the timer's lateness in ms and the tokens/s generated meanwhile."""
    lags_ms: list[float] = []
    async with await Engine.open(default_model(), EngineOptions(num_threads=threads)) as engine:
        watcher = asyncio.create_task(watch_lag(lags_ms))
        until = time.perf_counter() + seconds
        started = time.perf_counter()
        tokens = await asyncio.gather(
            *(_converse(engine, number, until) for number in range(NUM_CONVERSATIONS))
        )
        elapsed = time.perf_counter() - started
        watcher.cancel()
    return lags_ms, sum(tokens) / elapsed


def main() -> None:
    """Print the lateness beside the goals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    lags_ms, speed = asyncio.run(measure(arguments.seconds, arguments.threads))
    median, p99, worst = np.percentile(lags_ms, [50, 99, 100])
    rows = [
        ["median", f"{median:.1f}", ""],
        ["99th percentile", f"{p99:.1f}", f"{GOAL_P99_MS}"],
        ["worst", f"{worst:.1f}", f"{GOAL_WORST_MS}"],
    ]
    title = f"{NUM_CONVERSATIONS} conversations, {speed:.0f} tokens/s, {len(lags_ms)} timers of 10 ms"
    print_table(title, ["late by", "ms", "goal"], rows)


if __name__ == "__main__":
    main()
