"""Two hundred channels with four hundred people on a simulated Discord, and sixteen with a real model.

    python -m benchmarks.discord_load
    python -m benchmarks.discord_load --rooms 200 --model-rooms 16 --threads 2
    python -m benchmarks.discord_load --model-rooms 0 --rounds 3 --pairs

Two hundred channels take about a minute, whatever the machine: 64 answers are made at a time, and each takes
two seconds. With `--pairs` each round is followed by one in which people also talk to each other, the bot
reads along, and each question gets a thread.

Everybody asks at about the same time, on real clocks. Prints whether each question was answered once, in
order and from its own channel, how late a 10 ms timer on the event loop was meanwhile (the simulated Discord
works on the same loop), and what was left in memory afterwards. Ends with 1 where a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import default_model, print_table, watch_lag, watch_work
from benchmarks.crowd import QUESTION, Crowd, Outcome, num_kept, open_crowd
from bot.parameters import ChatParameters
from engine.engine import Engine, EngineOptions
from engine.types import ChatMessage, SamplingParams
from tests.fakes import Script, ScriptedEngine

TURNS = (0, 0, 1, 0, 1)
"""Which of a room's two people asks next: a burst of one person first, then in turn."""
PAUSE_S = 0.004
NUM_PIECES, PIECE_S, FIRST_S = 20, 0.05, 1.0
"""Of an answer; the first piece comes later than the next question, as with a model that has much to read."""
MAX_RUNNING = 64
MODEL_TURNS, MODEL_PAUSE_S, MODEL_TOKENS = (0, 1, 0), 0.05, 48
TIMEOUT_S = 600.0
GOAL_P99_MS, GOAL_KB_PER_ANSWER = 50, 2
_OURS = [tracemalloc.Filter(True, f"*/{package}/*") for package in ("bot", "engine", "storage")]


@dataclass(frozen=True, slots=True)
class Measured:
    """How the bot did while it was asked: how late the loop was, how much it computed, what was left."""

    seconds: float
    lags_ms: Sequence[float]
    works_ms: Sequence[float]
    num_objects_left: int
    num_tasks_left: int

    @property
    def p99_ms(self) -> float:
        """The loop's lateness that 99 of 100 timers stayed below."""
        return float(np.percentile(self.lags_ms, 99))


@dataclass(frozen=True, slots=True)
class Figures:
    """What one load showed. `kb_per_answer`: what the bot's own code still held afterwards."""

    outcome: Outcome
    measured: Measured
    kb_per_answer: float | None = None
    num_fetches: int = 0
    """Of channels' histories."""
    most_fetches: int = 0
    """Of one channel."""

    @property
    def is_good(self) -> bool:
        """Whether every goal was met."""
        is_small = self.kb_per_answer is None or self.kb_per_answer < GOAL_KB_PER_ANSWER
        is_empty = not self.measured.num_objects_left and not self.measured.num_tasks_left
        is_known = self.most_fetches <= 1  # memory knows a channel from its first question on
        is_fast = self.measured.p99_ms < GOAL_P99_MS
        return self.outcome.is_perfect and is_empty and is_small and is_known and is_fast


def echo(
    dialog: Sequence[ChatMessage],
    piece_s: float = PIECE_S,
    num_pieces: int = NUM_PIECES,
    first_s: float = FIRST_S,
) -> Script:
    """Answer with the marks of all questions in the last turn, slowly."""
    marks = [match[0] for match in QUESTION.finditer(dialog[-1].content)]
    pieces = ["I heard", *(f" {mark}" for mark in marks), *[" and more"] * num_pieces]
    return Script(pieces, delay_s=piece_s, first_delay_s=first_s)


async def measure(crowd: Crowd, turns: Sequence[int], pause_s: float) -> Measured:
    """Let the crowd ask, and see how the bot does meanwhile and what is left afterwards."""
    num_objects, num_tasks = num_kept(), len(asyncio.all_tasks())
    lags_ms: list[float] = []
    works_ms: list[float] = []
    watchers = [asyncio.create_task(watch_lag(lags_ms)), asyncio.create_task(watch_work(works_ms))]
    started = time.perf_counter()
    await crowd.ask(turns, pause_s)
    await crowd.until_answered(TIMEOUT_S)
    seconds = time.perf_counter() - started
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    await asyncio.sleep(1)
    num_tasks_left = max(0, len(asyncio.all_tasks()) - num_tasks)  # some that start the bot end meanwhile
    return Measured(seconds, lags_ms, works_ms, num_kept() - num_objects, num_tasks_left)


async def grown_kb_per_answer(crowd: Crowd, engine: ScriptedEngine) -> float:
    """Return what the bot's own code holds for each answer after it ended, with tracemalloc's eyes."""
    tracemalloc.start()
    try:
        await measure(crowd, (0,), PAUSE_S)  # what is made once is made now
        before = _held(engine)
        await measure(crowd, (1, 0), PAUSE_S)
        after = _held(engine)
    finally:
        tracemalloc.stop()
    grown = sum(difference.size_diff for difference in after.compare_to(before, "filename"))
    return grown / 1024 / (2 * len(crowd.rooms))


def _held(engine: ScriptedEngine) -> tracemalloc.Snapshot:
    """Return what is held of what the bot's code made, without what the scripted engine wrote down."""
    for record in (engine.dialogs, engine.params, engine.generations, engine._fitted):
        record.clear()
    gc.collect()
    return tracemalloc.take_snapshot().filter_traces(_OURS)


async def scripted_load(folder: Path, num_rooms: int, *, in_threads: bool = False) -> Figures:
    """Load the bot with an engine that repeats what it was asked. in_threads: see `open_crowd`."""
    engine = ScriptedEngine(respond=echo, max_requests=MAX_RUNNING, max_kv_tokens=MAX_RUNNING * 4096)
    parameters = ChatParameters(max_history_tokens=1024)
    async with open_crowd(engine, folder, num_rooms, parameters=parameters, in_threads=in_threads) as crowd:
        measured = await measure(crowd, TURNS, PAUSE_S)
        outcome = await crowd.outcome([[m.content for m in dialog] for dialog in engine.dialogs])
        fetches = crowd.fetches.copy()
        kb_per_answer = None if in_threads else await grown_kb_per_answer(crowd, engine)
    most = max(fetches.values(), default=0)
    return Figures(outcome, measured, kb_per_answer, fetches.total(), most)


async def model_load(folder: Path, num_rooms: int, threads: int) -> Figures:
    """Load the bot with the default model."""
    parameters = ChatParameters(SamplingParams(max_new_tokens=MODEL_TOKENS))
    options = EngineOptions(num_threads=threads)
    async with (
        await Engine.open(default_model(), options) as engine,
        open_crowd(
            engine,
            folder,
            num_rooms,
            parameters=parameters,
            is_echoed=False,
        ) as crowd,
    ):
        measured = await measure(crowd, MODEL_TURNS, MODEL_PAUSE_S)
        return Figures(await crowd.outcome(), measured)


def print_figures(title: str, figures: Figures) -> None:
    """Print a table of the figures beside their goals."""
    outcome, measured = figures.outcome, figures.measured
    median, worst = np.percentile(measured.lags_ms, [50, 100])
    rows = [
        ["questions lost", str(outcome.num_lost), "0"],
        ["questions answered twice", str(outcome.num_double), "0"],
        ["answers not shown whole", str(outcome.num_unfinished), "0"],
        ["channels out of order", str(outcome.num_rooms_out_of_order), "0"],
        ["texts of another channel", str(outcome.num_foreign), "0"],
        ["loop late, median, ms", f"{median:.1f}", ""],
        ["loop late, 99th percentile, ms", f"{measured.p99_ms:.1f}", str(GOAL_P99_MS)],
        ["loop late, worst, ms", f"{worst:.1f}", ""],
        ["objects of answers left", str(measured.num_objects_left), "0"],
        ["tasks left", str(measured.num_tasks_left), "0"],
        ["fetches of history", str(figures.num_fetches), ""],
        ["most of one channel", str(figures.most_fetches), "1"],
    ]
    if figures.kb_per_answer is not None:
        rows.append(["KiB held after an answer", f"{figures.kb_per_answer:.2f}", str(GOAL_KB_PER_ANSWER)])
    print_table(f"{title}, {measured.seconds:.0f} s", ["", "", "goal"], rows)


def main() -> None:
    """Print the figures of both loads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rooms", type=int, default=200, help="of the scripted load; 0 leaves it out")
    parser.add_argument("--model-rooms", type=int, default=16, help="of the default model's load")
    parser.add_argument("--threads", type=int, default=0, help="of the model; 0 for the physical cores")
    parser.add_argument("--rounds", type=int, default=1, help="of the scripted load")
    parser.add_argument("--pairs", action="store_true", help="also with talk and threads, in turn")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    all_figures = []
    for in_threads in [False, True][: 1 + arguments.pairs] * arguments.rounds if arguments.rooms else []:
        with tempfile.TemporaryDirectory() as folder:
            figures = asyncio.run(scripted_load(Path(folder), arguments.rooms, in_threads=in_threads))
            title = f"Scripted engine: {arguments.rooms} channels, {figures.outcome.num_asked} questions"
            print_figures(f"{title}, talk and threads" if in_threads else title, figures)
            all_figures.append(figures)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model_rooms:
            figures = asyncio.run(model_load(Path(folder), arguments.model_rooms, arguments.threads))
            title = f"Default model: {arguments.model_rooms} channels, {figures.outcome.num_asked} questions"
            print_figures(title, figures)
            all_figures.append(figures)
    sys.exit(0 if all(figures.is_good for figures in all_figures) else 1)


if __name__ == "__main__":
    main()
