"""Block quantisation of weight matrices into the layout of ONNX Runtime's MatMulNBits. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK_SIZE = 32


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
    """Round each block of 32 inputs to 8 bits, symmetrically: its largest weight becomes ±127.

    Raises `ValueError` when the inputs are not a multiple of 32.
    """
    rows, columns = matrix.shape
    if columns % BLOCK_SIZE:
        raise ValueError(f"{columns} inputs are not a multiple of the block size {BLOCK_SIZE}.")
    blocks = matrix.reshape(rows, columns // BLOCK_SIZE, BLOCK_SIZE)
    scales = np.abs(blocks).max(axis=-1) / np.float32(127.0)
    divisors = np.where(scales == 0, np.float32(1.0), scales)
    values = np.rint(blocks / divisors[..., None]) + 128.0
    return BlockQuantized(values.astype(np.uint8), scales)
