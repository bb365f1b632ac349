"""What the benchmarks share: the default model, prompts, one answer through the public API, tables."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from rich.console import Console
from rich.table import Table

from engine.convert.default_model import DEFAULT_PRECISION, ensure_default_model
from engine.describing.architecture import Precision
from engine.types import Prompt, SamplingParams, TextEngine, Usage

TIMER_S = 0.010
FIRST_TEXT_ID = 300
"""Ids below are control tokens and single bytes."""


def cache_folder() -> Path:
    """Return the cache that the bot uses too."""
    return Path(os.environ.get("LLAMA_CACHE") or platformdirs.user_cache_dir("llamacord"))


def default_model(precision: Precision = DEFAULT_PRECISION) -> Path:
    """Return the converted default model, fetched first where needed."""
    return ensure_default_model(cache_folder(), precision)


def random_prompt(seed: int, num_tokens: int, vocab_size: int = 40000) -> Prompt:
    """Return a prompt of random text tokens: no two seeds share a prefix."""
    ids = np.random.default_rng(seed).integers(FIRST_TEXT_ID, vocab_size, num_tokens)
    return Prompt(tuple(int(token) for token in ids))


@dataclass(frozen=True, slots=True)
class Answer:
    """What one answer took and when it began and ended on the caller's clock."""

    text: str
    usage: Usage


async def answer(engine: TextEngine, prompt: Prompt, params: SamplingParams) -> Answer:
    """Generate one answer to its end, as soon as there is room for it."""
    num_tokens = engine.tokens_needed(prompt, params)
    while not engine.load.has_room(num_tokens):  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(0.001)
    generation = engine.generate(prompt, params)
    text = "".join([piece async for piece in generation])
    if generation.completion is None:
        raise RuntimeError("The answer ended without a completion.")
    return Answer(text, generation.completion.usage)


class Side:
    """One side of a comparison: a process of its own, idle until it is asked."""

    def __init__(self, module: str, *arguments: object) -> None:
        """Start `module`, which reads what to measure line by line and answers each line with a figure."""
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, work: object) -> float:
        """Return tokens/s. Raises `RuntimeError` when the process has ended."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("The process has no pipes.")
        self._process.stdin.write(f"{work}\n")
        self._process.stdin.flush()
        figure = self._process.stdout.readline()
        if not figure:
            raise RuntimeError("The process that was to be measured has ended; it says why above.")
        return float(figure)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a table, numbers to the right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if os.environ.get("COLUMNS") else 110).print(table)


def resident_mb() -> float:
    """Return this process's resident memory in MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def watch_lag(lags_ms: list[float]) -> None:
    """Add by how many ms a timer of 10 ms is late, again and again until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + TIMER_S
        await asyncio.sleep(TIMER_S)
        lags_ms.append((loop.time() - due) * 1e3)


async def watch_work(works_ms: list[float]) -> None:
    """Add how many ms the loop's thread computed between two timers of 10 ms, until cancelled.

    As lateness, but without what other programs take of the processor.
    """
    before_s = time.thread_time()
    while True:
        await asyncio.sleep(TIMER_S)
        now_s = time.thread_time()
        works_ms.append((now_s - before_s) * 1e3)
        before_s = now_s
