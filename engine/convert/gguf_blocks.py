"""GGUF's blocks as ours, where both mean exactly the same weights. Pure numpy.

The layouts are those of llama.cpp's ggml-common.h. Q8_0, Q4_0, Q4_1 and Q4_K have blocks of 32 weights with a
scale and at most a zero point each; other types are dequantised and rounded anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from engine.convert.quantize import BLOCK_SIZE, BlockQuantized, ByteArray, FloatArray, pack_nibbles

_K_BLOCKS = 8
"""Blocks of 32 in one block of a K-quant."""


def exact_blocks(kind: str, rows: ByteArray) -> BlockQuantized | None:
    """Return a tensor of the GGUF type `kind` as blocks, or None where they would not be exact.

    rows: uint8 [n, bytes of a row].
    """
    reader = _READERS.get(kind)
    return None if reader is None else reader(rows)


def _q8_0(rows: ByteArray) -> BlockQuantized:
    """Scale f16, 32 signed bytes."""
    blocks = rows.reshape(len(rows), -1, 2 + BLOCK_SIZE)
    return BlockQuantized(8, blocks[..., 2:] ^ np.uint8(0x80), _floats(blocks, 0))


def _q4_0(rows: ByteArray) -> BlockQuantized:
    """Scale f16, 16 bytes with weights 0-15 in the low and 16-31 in the high halves."""
    blocks = rows.reshape(len(rows), -1, 2 + BLOCK_SIZE // 2)
    return BlockQuantized(4, _nibbles(blocks[..., 2:]), _floats(blocks, 0))


def _q4_1(rows: ByteArray) -> BlockQuantized:
    """Scale f16, minimum f16, 16 bytes as in Q4_0; a weight is value * scale + minimum."""
    blocks = rows.reshape(len(rows), -1, 4 + BLOCK_SIZE // 2)
    scales, minimums = _floats(blocks, 0), _floats(blocks, 2)
    return BlockQuantized(4, _nibbles(blocks[..., 4:]), scales, minimums + 8 * scales)


def _q4_k(rows: ByteArray) -> BlockQuantized:
    """Super-blocks of 256: scale f16, minimum f16, 12 bytes of 6-bit factors for both, 128 bytes of values.

    A weight of block i is value * scale * factor[i] - minimum * minimum_factor[i]. Values lie as four times
    32 bytes, each with one block in the low and the next one in the high halves.
    """
    blocks = rows.reshape(len(rows), -1, 4 + 12 + 128)
    factors, minimum_factors = _k_factors(blocks[..., 4:16])
    shape = (len(rows), -1)
    scales = (_floats(blocks, 0)[..., None] * factors).reshape(shape)
    minimums = (_floats(blocks, 2)[..., None] * minimum_factors).reshape(shape)
    pairs = blocks[..., 16:].reshape(*blocks.shape[:2], _K_BLOCKS // 2, 1, BLOCK_SIZE)
    values = np.concatenate([pairs & 0xF, pairs >> 4], axis=-2).reshape(*scales.shape, BLOCK_SIZE)
    return BlockQuantized(4, pack_nibbles(values), scales, 8 * scales - minimums)


def _k_factors(packed: ByteArray) -> tuple[FloatArray, FloatArray]:
    """Unpack 12 bytes into 8 scale and 8 minimum factors of 6 bits.

    Bytes 0-3 and 4-7 hold the first four of each in their low 6 bits; bytes 8-11 hold the low 4 bits of the
    last four of each, whose high 2 bits are on top of bytes 0-3 and 4-7.
    """
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([first & 0x3F, third & 0xF | first >> 6 << 4], axis=-1)
    minimums = np.concatenate([second & 0x3F, third >> 4 | second >> 6 << 4], axis=-1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _floats(blocks: ByteArray, at: int) -> FloatArray:
    """Return the f16 that lies `at` bytes from the start of each block."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(halves: ByteArray) -> ByteArray:
    """Bring 16 bytes a block from llama.cpp's order (i, i + 16) to MatMulNBits' (2i, 2i + 1)."""
    return pack_nibbles(np.concatenate([halves & 0xF, halves >> 4], axis=-1))


_READERS: Mapping[str, Callable[[ByteArray], BlockQuantized]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
}
