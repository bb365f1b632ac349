"""A `BlockModel` whose KV is the token ids themselves: exact, and unforgiving about a wrong block table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import numpy as np

from engine.gpu.kv_blocks import SCRATCH_BLOCK
from engine.gpu.step import PagedRow, buckets, pack
from engine.runtime.sampling import DEVICE_CANDIDATES, DEVICE_ROW, FloatArray, SampledRow, Sampler
from engine.types import SamplingParams
from tests.engine.fakes import NEVER_WRITTEN, VOCAB_SIZE, history_logits

NUM_CANDIDATES = 8
"""Of a vocabulary of 64 tokens, so that they often do not suffice."""


class HistoryBlocks:
    """Runs are made when they are started, and their results are there at once: order is all that matters."""

    def __init__(
        self, num_blocks: int, block_size: int, num_slots: int, unpenalised: Iterable[int] = ()
    ) -> None:
        self.num_blocks, self.block_size, self.num_slots = num_blocks, block_size, num_slots
        self.ids = np.full((num_blocks, block_size), NEVER_WRITTEN, np.int64)
        self.seen = np.zeros((num_slots + 1, VOCAB_SIZE), bool)
        self.counts = np.ones(VOCAB_SIZE, bool)
        self.counts[list(unpenalised)] = False
        self.num_started = self.num_followed = self.num_sightings = 0
        self.row_counts: list[int] = []
        self.is_closed = False
        self.fault: Exception | None = None
        self._newest: list[int] = []

    def bucket(self, num_rows: int) -> int:
        return next(size for size in buckets(max(16, self.num_slots)) if size >= num_rows)

    def start(self, rows: Sequence[PagedRow]) -> Future[list[SampledRow]]:
        self.num_started += 1
        return self._run(rows)

    def follow(self, rows: Sequence[PagedRow | None]) -> Future[list[SampledRow]]:
        self.num_followed += 1
        if len(rows) != len(self._newest):
            raise AssertionError("These are not the rows of the run before.")
        filler = PagedRow((0,), 0, (SCRATCH_BLOCK,), self.num_slots)
        return self._run(
            [
                filler if row is None else PagedRow((token,), row.past, row.blocks, row.slot, row.sampling)
                for row, token in zip(rows, self._newest, strict=True)
            ]
        )

    def saw(self, slot: int, ids: Iterable[int]) -> None:
        self.num_sightings += 1
        self.seen[slot] = False
        self.seen[slot, list(ids)] = True

    def close(self) -> None:
        self.is_closed = True

    def _run(self, rows: Sequence[PagedRow]) -> Future[list[SampledRow]]:
        future: Future[list[SampledRow]] = Future()
        if self.is_closed:
            raise AssertionError("The model is closed.")
        if self.fault is not None:
            future.set_exception(self.fault)
            return future
        width = max(len(row.blocks) for row in rows)
        pack(rows, num_rows=len(rows), width=width, block_size=self.block_size, scratch_slot=self.num_slots)
        self.row_counts.append(len(rows))
        flat = self.ids.reshape(-1)
        for row in rows:  # all of a run's KV is written before any of it is read
            flat[self._places(row, row.past, row.past + len(row.ids))] = row.ids
            self.seen[row.slot, row.ids[-1]] = self.counts[row.ids[-1]]
        sampled = [self._sampled(row, flat[self._places(row, 0, row.past + len(row.ids))]) for row in rows]
        self._newest = [row.token for row in sampled]
        future.set_result(sampled)
        return future

    def _places(self, row: PagedRow, first: int, end: int) -> list[int]:
        return [
            row.blocks[position // self.block_size] * self.block_size + position % self.block_size
            for position in range(first, end)
        ]

    def _sampled(self, row: PagedRow, history: np.ndarray) -> SampledRow:
        logits = history_logits(history)
        if row.blocks[0] == SCRATCH_BLOCK:
            return SampledRow(0)
        token, suffices = choose(logits.copy(), row.sampling, self.seen[row.slot])
        return SampledRow(token, None if suffices else logits)


def choose(logits: FloatArray, sampling: tuple[float, ...], seen: np.ndarray) -> tuple[int, bool]:
    """Choose as the device's sampler does; tell whether the candidates suffice. Else it is any token."""
    values = dict(zip(DEVICE_ROW, sampling, strict=True))
    uniform, penalty, top_k = values.pop("uniform"), values["repetition_penalty"], int(values["top_k"])
    if top_k > DEVICE_CANDIDATES:
        return 0, False
    lowered = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)
    params = SamplingParams(**values | {"top_k": top_k, "repetition_penalty": 1.0, "seed": 0})  # type: ignore[arg-type]
    sampler = Sampler(params, ())
    sampler.device_row()
    sampler._uniforms[0] = uniform
    token = sampler.sample(lowered.astype(np.float32))
    if params.temperature < 1e-4:
        return token, True
    rank = int((lowered > lowered[token]).sum())
    return (token, True) if top_k and rank < NUM_CANDIDATES else (int(lowered.argmin()), False)
