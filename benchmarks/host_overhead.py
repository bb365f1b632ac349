"""What the host adds to a step on a GPU, where the model itself takes a few milliseconds.

    python -m benchmarks.host_overhead --steps 400

The engine is the real one, from `Engine.generate` to who reads the answers. In the model's place one thread
waits as long as a run takes and chooses words at random. Beside it stands how long such a wait takes where
nothing else is to be done: the rest of a step is the host's.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common import print_table, random_prompt
from engine.convert.converter import convert
from engine.convert.source import SyntheticSource
from engine.describing.architecture import DecoderConfig, Precision
from engine.engine import Engine, EngineOptions
from engine.gpu.kv_blocks import SCRATCH_BLOCK
from engine.gpu.loading import Attention
from engine.gpu.runner import PagedRunner
from engine.gpu.step import Limits, PagedRow, buckets, pack, sampled_rows, widths
from engine.runtime.sampling import SampledRow
from engine.types import SamplingParams

CASES = ((1, 3.0), (8, 6.0), (32, 9.0), (64, 12.0), (128, 19.0))
"""Conversations, and the milliseconds that a run over them takes."""
GOAL = 0.05
BLOCK_SIZE = 128
CONTEXT = 2048
PROMPT_TOKENS = 100
VOCAB_SIZE = 32000
SHAPE = DecoderConfig(1, 32, 32, 2, 2, 16, VOCAB_SIZE, CONTEXT, 1e4, 1e-5, tied_embeddings=True)
"""Of a model that is there for its tokenizer alone."""
_NUM_CALIBRATING = 200


class WaitingModel:
    """A `BlockModel` whose runs are waits."""

    def __init__(self, num_slots: int, run_s: float) -> None:
        self.num_slots, self.block_size = num_slots, BLOCK_SIZE
        self.num_blocks = 1 + num_slots * CONTEXT // BLOCK_SIZE
        self._run_s = run_s
        self._limits = Limits(VOCAB_SIZE, CONTEXT, num_slots)
        self._buckets = buckets(max(16, num_slots))
        self._widths = widths(CONTEXT // BLOCK_SIZE)
        self._random = np.random.default_rng(0)
        self._thread = ThreadPoolExecutor(1)

    def bucket(self, num_rows: int) -> int:
        return next(size for size in self._buckets if size >= num_rows)

    def start(self, rows: Sequence[PagedRow]) -> Future[list[SampledRow]]:
        self._limits.check(rows, self.num_blocks)
        widest = max(-(-(row.past + len(row.ids)) // BLOCK_SIZE) for row in rows)
        pack(
            rows,
            num_rows=self.bucket(len(rows)),
            width=next(width for width in self._widths if width >= widest),
            block_size=BLOCK_SIZE,
            scratch_slot=self.num_slots,
        )
        return self._thread.submit(self._run, len(rows))

    def follow(self, rows: Sequence[PagedRow | None]) -> Future[list[SampledRow]]:
        filler = PagedRow((0,), 0, (SCRATCH_BLOCK,), self.num_slots)
        return self.start([row or filler for row in rows])

    def saw(self, slot: int, ids: Iterable[int]) -> None:
        """The words that follow do not depend on those that were."""

    def close(self) -> None:
        self._thread.shutdown()

    def wait_s(self) -> float:
        """Return the seconds that a run takes where nothing else is to be done."""
        return statistics.mean(self._thread.submit(self._timed).result() for _ in range(_NUM_CALIBRATING))

    def _timed(self) -> float:
        begun = time.perf_counter()
        time.sleep(self._run_s)
        return time.perf_counter() - begun

    def _run(self, num_rows: int) -> list[SampledRow]:
        chosen = np.ones((num_rows, 3), np.float32)
        chosen[:, 0] = self._random.integers(2, VOCAB_SIZE, num_rows)
        time.sleep(self._run_s)
        return sampled_rows(chosen, lambda _: np.zeros((0, VOCAB_SIZE), np.float32))


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds of a step: in all, of the model's run alone, and that the process computed."""

    step_ms: float
    model_ms: float
    processor_ms: float
    num_steps: float

    @property
    def host_share(self) -> float:
        """Part of the step that is not the model's."""
        return (self.step_ms - self.model_ms) / self.step_ms


@dataclass(frozen=True, slots=True)
class _Arrival:
    """How many tokens somebody had, when, and what the process had computed by then."""

    at: float
    processor_s: float
    num_tokens: int


async def _read(engine: Engine, number: int, params: SamplingParams) -> list[_Arrival]:
    """Read one answer to its end."""
    arrivals: list[_Arrival] = []
    num_tokens = 0
    prompt = random_prompt(number, PROMPT_TOKENS, VOCAB_SIZE)
    async for piece in engine.generate(prompt, params):
        num_tokens += len(piece)  # each token is a character
        arrivals.append(_Arrival(time.perf_counter(), time.process_time(), num_tokens))
    return arrivals


async def measure(folder: Path, num_conversations: int, run_ms: float, num_steps: int) -> Figures:
    """Return the means over the steps while all conversations are past their first token."""
    models: list[WaitingModel] = []

    def load() -> WaitingModel:
        models.append(WaitingModel(num_conversations, run_ms / 1e3))
        return models[-1]

    options = EngineOptions(max_concurrent=num_conversations, context_tokens=CONTEXT, speculation=False)
    load_runner = partial(PagedRunner, load, "nothing", Attention.PAGED.pace)
    async with Engine(folder, options, load_runner) as engine:
        await engine.start()
        model_s = await asyncio.to_thread(models[0].wait_s)
        params = SamplingParams(max_new_tokens=num_steps)
        read = await asyncio.gather(*(_read(engine, number, params) for number in range(num_conversations)))
    begin = max(arrivals[0].at for arrivals in read)
    end = min(arrivals[-1].at for arrivals in read)
    spans = []
    for arrivals in read:
        within = [arrival for arrival in arrivals if begin <= arrival.at <= end]
        spans.append((within[0], within[-1]))
    steps = [last.num_tokens - first.num_tokens for first, last in spans]
    busy = [(b.processor_s - a.processor_s) / n for (a, b), n in zip(spans, steps, strict=True)]
    return Figures(
        step_ms=1e3 * statistics.mean((b.at - a.at) / n for (a, b), n in zip(spans, steps, strict=True)),
        model_ms=1e3 * model_s,
        processor_ms=1e3 * statistics.mean(busy),
        num_steps=statistics.mean(steps),
    )


def _row(num_conversations: int, figures: Figures) -> list[str]:
    host_ms = figures.step_ms - figures.model_ms
    return [
        f"{num_conversations}",
        f"{figures.num_steps:.0f}",
        f"{figures.step_ms:.2f}",
        f"{figures.model_ms:.2f}",
        f"{host_ms:.2f}",
        f"{100 * figures.host_share:.1f} %",
        f"{100 * GOAL:.0f} %",
        f"{figures.processor_ms:.2f}",
    ]


def main() -> None:
    """Print a row for each number of conversations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "words"
        convert(SyntheticSource(SHAPE), folder, Precision.FP32)
        for num_conversations, run_ms in CASES:
            figures = asyncio.run(measure(folder, num_conversations, run_ms, arguments.steps))
            rows.append(_row(num_conversations, figures))
    columns = ["conversations", "steps", "ms a step", "model", "host", "share", "goal", "processor ms"]
    print_table("What the host adds to a step", columns, rows)


if __name__ == "__main__":
    main()
