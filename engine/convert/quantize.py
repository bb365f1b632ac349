"""Block quantisation of weight matrices into the layout of ONNX Runtime's MatMulNBits. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

BLOCK_SIZE = 32
_MAX_LEVEL = 127
_MAX_SOURCE_LEVELS = 16
_NUM_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class BlockQuantized:
    """A matrix [n, k] as `values` uint8 [n, k/32, 32] and `scales` float32 [n, k/32].

    A weight is (value - 128) * scale of its block.
    """

    values: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return the matrix [n, k] that the values stand for."""
        centred = self.values.astype(np.float32) - 128.0
        return (centred * self.scales[..., None]).reshape(len(self.values), -1)


def quantize_int8(matrix: npt.NDArray[np.float32]) -> BlockQuantized:
    """Round each block of 32 inputs to 8 bits, symmetrically.

    The scale makes a block's largest weight ±127, or less where the weights come from a 4-bit file: there a
    somewhat larger scale meets the few levels of the block nearly exactly. Raises `ValueError` when inputs
    are not a multiple of 32.
    """
    rows, columns = matrix.shape
    if columns % BLOCK_SIZE:
        raise ValueError(f"{columns} inputs are not a multiple of the block size {BLOCK_SIZE}.")
    blocks = matrix.reshape(-1, BLOCK_SIZE)
    scales = np.abs(blocks).max(axis=1) / np.float32(_MAX_LEVEL)
    scales[scales == 0] = 1.0
    _meet_levels(blocks, scales)
    values = (np.rint(blocks / scales[:, None]) + 128.0).astype(np.uint8)
    shape = (rows, columns // BLOCK_SIZE)
    return BlockQuantized(values.reshape(*shape, BLOCK_SIZE), scales.reshape(shape))


def _meet_levels(blocks: FloatArray, scales: FloatArray) -> None:
    """Enlarge the scales of blocks that hold at most 16 levels, `step` apart, where that rounds them better.

    A scale of step / k turns the distances between levels into whole numbers; the best k also brings the
    offset of the levels next to one.
    """
    gaps = np.diff(np.sort(blocks, axis=1), axis=1)
    is_step = gaps > scales[:, None] / 2
    few = np.flatnonzero(is_step.any(axis=1) & (is_step.sum(axis=1) < _MAX_SOURCE_LEVELS))
    step = np.where(is_step[few], gaps[few], np.inf).min(axis=1)
    chosen = blocks[few]
    best, smallest = scales[few], scales[few].copy()
    error = _rounding_error(chosen, best)
    for candidate in range(_NUM_CANDIDATES):
        divisor = np.maximum(1.0, np.floor(step / smallest * 1.0001) - candidate)
        scale = np.maximum(step / divisor, smallest).astype(np.float32)
        candidate_error = _rounding_error(chosen, scale)
        better = candidate_error < error
        best[better], error[better] = scale[better], candidate_error[better]
    scales[few] = best


def _rounding_error(blocks: FloatArray, scales: FloatArray) -> FloatArray:
    """Return each block's sum of squared rounding errors."""
    rest = blocks / scales[:, None]
    rest -= np.rint(rest)
    error: FloatArray = np.einsum("ij,ij->i", rest, rest) * scales * scales
    return error
