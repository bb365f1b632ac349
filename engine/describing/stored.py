"""How tensors lie in the file `weights.bin` of a converted model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.describing.architecture import DecoderTensor, Role

_TYPE_BYTES = {"float32": 4, "float16": 2}
_SCALE_BYTES = 4
ALIGNMENT = 4096
"""Each array begins at a page, so that ONNX Runtime can memory-map it."""
_BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class DenseTensor:
    """Numbers from the byte `offset` on, in the order of `shape`, which is a tensor's `dense_shape`.

    type: "float32", as all vectors are, or "float16".
    """

    type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _TYPE_BYTES[self.type]

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.offset + self.num_bytes

    def is_a(self, tensor: DecoderTensor) -> bool:
        """Return whether it can be that tensor of a decoder."""
        is_known = self.type in _TYPE_BYTES and (self.type == "float32" or tensor.role is not Role.VECTOR)
        return is_known and self.shape == tensor.dense_shape and self.offset >= 0


@dataclass(frozen=True, slots=True)
class BlockTensor:
    """A matrix [outputs, inputs] in blocks of `block_size` inputs, laid out as MatMulNBits takes it.

    A weight is (value - 2**(bits - 1)) * scale + zero point, with scale and zero point of its block. Three
    arrays, each from the byte of its name on: `values`, uint8 [outputs, blocks, block_size * bits / 8];
    `scales`, float32 [outputs, blocks]; `zero_points`, float32 [blocks, outputs], None where all are 0.
    """

    bits: int
    block_size: int
    shape: tuple[int, ...]
    values: int
    scales: int
    zero_points: int | None = None

    @property
    def type(self) -> str:
        return f"int{self.bits}"

    @property
    def num_blocks(self) -> int:
        """Blocks of one output."""
        return self.shape[1] // self.block_size

    @property
    def value_bytes(self) -> int:
        """Bytes of a block's values."""
        return self.block_size * self.bits // 8

    @property
    def num_bytes(self) -> int:
        a_block = self.value_bytes + _SCALE_BYTES * (1 if self.zero_points is None else 2)
        return self.shape[0] * self.num_blocks * a_block

    @property
    def end(self) -> int:
        """The byte behind the last of its arrays."""
        num_blocks = self.shape[0] * self.num_blocks
        last_numbers = max(self.scales, self.zero_points or 0)
        return max(self.values + num_blocks * self.value_bytes, last_numbers + num_blocks * _SCALE_BYTES)

    def is_a(self, tensor: DecoderTensor) -> bool:
        """Return whether it can be that tensor of a decoder. An embedding is looked up in 8 bits alone."""
        if tensor.role is Role.VECTOR or self.shape != tensor.shape or self.block_size not in _BLOCK_SIZES:
            return False
        if tensor.role is Role.EMBEDDING and (self.bits != 8 or self.zero_points is not None):
            return False
        starts = (self.values, self.scales, self.zero_points or 0)
        return self.bits in (4, 8) and self.shape[1] % self.block_size == 0 and min(starts) >= 0


StoredTensor = DenseTensor | BlockTensor
