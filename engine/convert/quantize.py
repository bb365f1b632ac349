"""Matrices in blocks of few bits, in the layout of ONNX Runtime's MatMulNBits. Pure numpy.

Blocks come from a file whose own blocks mean the same (`gguf_blocks`), or are rounded here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

BLOCK_SIZE = 32
_ROWS_AT_ONCE = 1024
"""Bounds what rounding takes of memory beside the matrix."""


@dataclass(frozen=True, slots=True)
class BlockQuantized:
    """A matrix [n, k] in blocks of m inputs, 32 as a rule, of 4 or 8 bits a weight.

    A weight is (value - 2**(bits - 1)) * scale + zero point, with scale and zero point of its block. values:
    uint8 [n, k/m, m * bits / 8], of two 4-bit values in a byte the first one is low. scales, zero_points:
    float32 [n, k/m]; None where all zero points are 0.
    """

    bits: int
    values: ByteArray
    scales: FloatArray
    zero_points: FloatArray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        rows, num_blocks = self.scales.shape
        return rows, num_blocks * self.block_size

    @property
    def block_size(self) -> int:
        """Inputs of a block."""
        return int(self.values.shape[-1]) * 8 // self.bits

    @property
    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        zero_points = self.scales if self.zero_points is None else self.zero_points
        return bool(np.isfinite(self.scales).all() and np.isfinite(zero_points).all())

    def dequantize(self) -> FloatArray:
        """Return the matrix [n, k] that the blocks stand for."""
        wide = self.widened()
        blocks = (wide.values.astype(np.float32) - 128.0) * self.scales[..., None]
        if self.zero_points is not None:
            blocks += self.zero_points[..., None]
        return blocks.reshape(self.shape)

    def widened(self) -> BlockQuantized:
        """Return the same matrix, exactly, in 8 bits."""
        if self.bits == 8:
            return self
        low, high = self.values & 0xF, self.values >> 4
        pairs = np.stack([low, high], axis=-1)
        values = pairs.reshape(*self.scales.shape, self.block_size) + np.uint8(128 - 8)
        return BlockQuantized(8, values, self.scales, self.zero_points)

    def in_blocks_of(self, size: int) -> BlockQuantized:
        """Return the same matrix, exactly, in blocks of so many inputs, of which each has a whole number."""
        parts = self.block_size // size
        if parts == 1:
            return self
        zero_points = None if self.zero_points is None else self.zero_points.repeat(parts, axis=1)
        values = self.values.reshape(len(self.values), -1, self.values.shape[-1] // parts)
        return BlockQuantized(self.bits, values, self.scales.repeat(parts, axis=1), zero_points)

    def rows(self, change: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]) -> BlockQuantized:
        """Return a matrix whose rows are `change`d in order or number."""
        zero_points = None if self.zero_points is None else change(self.zero_points)
        return BlockQuantized(
            self.bits,
            change(self.values),  # type: ignore[arg-type]
            change(self.scales),  # type: ignore[arg-type]
            zero_points,  # type: ignore[arg-type]
        )


def pack_nibbles(values: ByteArray) -> ByteArray:
    """Put values [..., 2m] below 16 into bytes [..., m], the first one of two low."""
    packed: ByteArray = values[..., 0::2] | values[..., 1::2] << np.uint8(4)
    return packed


def stack(parts: Sequence[BlockQuantized]) -> BlockQuantized:
    """Return the matrices one below the other, in the most bits and the smallest blocks of any."""
    if len(parts) == 1:
        return parts[0]
    if len({part.bits for part in parts}) > 1:
        parts = [part.widened() for part in parts]
    smallest = min(part.block_size for part in parts)
    parts = [part.in_blocks_of(smallest) for part in parts]
    zero_points = None
    if any(part.zero_points is not None for part in parts):
        zeros = [
            np.zeros_like(part.scales) if part.zero_points is None else part.zero_points for part in parts
        ]
        zero_points = np.concatenate(zeros)
    return BlockQuantized(
        parts[0].bits,
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.scales for part in parts]),
        zero_points,
    )


def quantize(matrix: FloatArray, bits: int) -> BlockQuantized:
    """Round each block of 32 inputs to 4 or 8 bits, symmetrically.

    Raises `ValueError` when inputs are not a multiple of 32.
    """
    return quantize_rows(matrix.shape[0], matrix.shape[1], bits, lambda rows: matrix[rows])


def quantize_rows(rows: int, columns: int, bits: int, read: Callable[[slice], FloatArray]) -> BlockQuantized:
    """Do what `quantize` does with a matrix that `read` gives some rows of at a time."""
    if columns % BLOCK_SIZE:
        raise ValueError(f"{columns} inputs are not a multiple of the block size {BLOCK_SIZE}.")
    values = np.empty((rows, columns // BLOCK_SIZE, BLOCK_SIZE * bits // 8), np.uint8)
    scales = np.empty((rows, columns // BLOCK_SIZE), np.float32)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        blocks = read(part).reshape(-1, columns // BLOCK_SIZE, BLOCK_SIZE)
        values[part], scales[part] = _round(blocks, bits)
    return BlockQuantized(bits, values, scales)


def _round(blocks: FloatArray, bits: int) -> tuple[ByteArray, FloatArray]:
    """Return values and scales of blocks [n, m, 32].

    In 8 bits the largest weight becomes ±127. In 4 bits that would leave one of 16 levels unused: there the
    largest weight becomes -8, whatever its sign, as llama.cpp's Q4_0 has it.
    """
    if bits == 8:
        scales = np.abs(blocks).max(axis=-1) / np.float32(127)
    else:
        largest = np.abs(blocks).argmax(axis=-1)[..., None]
        scales = np.take_along_axis(blocks, largest, axis=-1)[..., 0] / np.float32(-8)
    scales[scales == 0] = 1.0
    half = 2 ** (bits - 1)
    levels = np.clip(np.rint(blocks / scales[..., None]), -half, half - 1)
    values = (levels + half).astype(np.uint8)
    return (pack_nibbles(values) if bits == 4 else values), scales
