"""A step over a paged KV cache as arrays: what the host gives to the device. Pure numpy.

Rows are sequences. A decode step has one token of each and is padded to a bucket with filler rows, whose
token is 0 in the scratch block, so that a captured graph serves steps of many sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.gpu.kv_blocks import SCRATCH_BLOCK
from engine.runtime.sampling import DEVICE_ROW, FloatArray, SampledRow, device_row_of
from engine.types import SamplingParams

IntArray = npt.NDArray[np.integer]

GREEDY = device_row_of(SamplingParams(0.0, 1.0, 0, 0.0, 1.0), 0.0)
"""The sampling of a row whose choice nobody reads."""


@dataclass(frozen=True, slots=True)
class PagedRow:
    """What a step computes of one sequence: `ids` after `past` tokens, and which token follows.

    blocks: the sequence's block table. slot: its row in the table of seen tokens. sampling: a `DEVICE_ROW`.
    """

    ids: Sequence[int]
    past: int
    blocks: Sequence[int]
    slot: int
    sampling: tuple[float, ...] = GREEDY


@dataclass(frozen=True, slots=True)
class Limits:
    """What rows may name: the operators trust their arguments, and would write or read elsewhere."""

    vocab_size: int
    max_tokens: int
    num_slots: int

    def check(self, rows: Sequence[PagedRow], num_blocks: int) -> None:
        """Raise `ValueError` for a row that does not fit a model with so many blocks."""
        for row in rows:
            if min(row.ids) < 0 or max(row.ids) >= self.vocab_size:
                raise ValueError("A token id is outside the vocabulary.")
            if row.past + len(row.ids) > self.max_tokens:
                raise ValueError(f"{len(row.ids)} tokens after {row.past} exceed {self.max_tokens}.")
            if not 0 <= row.slot <= self.num_slots:
                raise ValueError(f"There is no slot {row.slot}.")
            if min(row.blocks) < 0 or max(row.blocks) >= num_blocks:
                raise ValueError(f"There are no such blocks: {row.blocks}.")


@dataclass(frozen=True, slots=True)
class PackedStep:
    """The inputs of one run: T tokens of B sequences with tables of W blocks.

    ids: int64 [T]. cumulative: int32 [B + 1]. past: int32 [B]. table: int32 [B, W]. slots: int64 [B].
    sampling: float32 [B, columns], a `DEVICE_ROW` each. bounds: int32 [3], most new tokens of a sequence, its
    longest whole, and 0.
    """

    ids: npt.NDArray[np.int64]
    cumulative: npt.NDArray[np.int32]
    past: npt.NDArray[np.int32]
    table: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int64]
    sampling: npt.NDArray[np.float32]
    bounds: npt.NDArray[np.int32]

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays under the names of the graph's inputs."""
        return {
            "input_ids": self.ids,
            "cumulative": self.cumulative,
            "past": self.past,
            "block_table": self.table,
            "slots": self.slots,
            "sampling": self.sampling,
        }


def pack(
    rows: Sequence[PagedRow], *, num_rows: int, width: int, block_size: int, scratch_slot: int
) -> PackedStep:
    """Pack rows, and filler rows up to `num_rows`, with tables of `width` blocks.

    Raises `ValueError` for a row without tokens, or whose tokens its blocks or `width` cannot hold.
    """
    if not 0 < len(rows) <= num_rows:
        raise ValueError(f"{len(rows)} rows do not fit {num_rows}.")
    counts = np.ones(num_rows, np.int32)
    past = np.zeros(num_rows, np.int32)
    table = np.full((num_rows, width), SCRATCH_BLOCK, np.int32)
    slots = np.full(num_rows, scratch_slot, np.int64)
    sampling = np.empty((num_rows, len(DEVICE_ROW)), np.float32)
    sampling[len(rows) :] = GREEDY
    ids: list[int] = []
    for index, row in enumerate(rows):
        total = row.past + len(row.ids)
        num_blocks = -(-total // block_size)
        if not row.ids or row.past < 0 or num_blocks > min(width, len(row.blocks)):
            raise ValueError(f"{len(row.ids)} tokens after {row.past} do not fit {len(row.blocks)} blocks.")
        ids += row.ids
        counts[index] = len(row.ids)
        past[index] = row.past
        table[index, :num_blocks] = row.blocks[:num_blocks]
        slots[index] = row.slot
        sampling[index] = row.sampling
    ids += [0] * (num_rows - len(rows))
    cumulative = np.zeros(num_rows + 1, np.int32)
    np.cumsum(counts, out=cumulative[1:])
    bounds = np.array([counts.max(), width * block_size, 0], np.int32)
    return PackedStep(np.array(ids, np.int64), cumulative, past, table, slots, sampling, bounds)


def sampled_rows(
    chosen: npt.NDArray[np.float32], whole_rows: Callable[[IntArray], FloatArray]
) -> list[SampledRow]:
    """Return what a device says of its rows.

    chosen [B, 3]: of each row the token, whether the candidates suffice, and the best logit. `whole_rows`
    returns the logits [n, vocab] of those rows for which they do not.
    """
    rows = np.array(chosen)
    is_number = np.isfinite(rows[:, 2])
    needed = np.flatnonzero(is_number & (rows[:, 1] == 0))
    whole = whole_rows(needed) if len(needed) else None
    tokens = np.where(is_number, rows[:, 0], 0).astype(np.int64).tolist()
    sampled = [SampledRow(token, is_number=bool(ok)) for token, ok in zip(tokens, is_number, strict=True)]
    for place, index in enumerate(needed.tolist()):
        if whole is not None:
            sampled[index] = SampledRow(tokens[index], logits=whole[place])
    return sampled


def buckets(largest: int) -> tuple[int, ...]:
    """Return the sizes that steps are padded to, smallest first: 1, 2, 4, 8, then by about a quarter each."""
    sizes = [size for size in (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128) if size < largest]
    while sizes and sizes[-1] + 32 < largest and sizes[-1] >= 128:
        sizes.append(sizes[-1] + 32)
    return (*sizes, largest)


def widths(largest: int) -> tuple[int, ...]:
    """Return the lengths that block tables are padded to, smallest first: each twice the one before."""
    sizes = [4]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return (*(size for size in sizes if size < largest), largest)
