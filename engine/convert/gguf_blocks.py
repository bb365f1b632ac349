"""Blocks of GGUF files as ours: those that mean exactly the same weights. Pure numpy.

Q8_0, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1 and Q5_K have 32 weights with a scale and at most a zero point each, Q6_K
has 16 with a scale, in the layouts of llama.cpp's ggml-common.h. Five and six bits become eight, which hold
them exactly. Other types mean weights that no block of ours does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from engine.convert.quantize import BLOCK_SIZE, BlockQuantized, ByteArray, FloatArray, pack_nibbles

_K_BLOCKS = 8
"""Blocks of 32 in one block of a K-quant."""
_CENTRED = np.uint8(128 - 16)
"""Puts five bits around the middle of eight: rounded activations cost less where values are small."""
KIND_BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q8_0": 8, "Q5_0": 8, "Q5_1": 8, "Q5_K": 8, "Q6_K": 8}
"""How many bits the exact blocks of each type have."""
BLOCK_SIZES = {"Q6_K": 16}
"""Of those whose blocks have not 32 weights."""
WITH_ZERO_POINTS = {"Q4_1", "Q4_K", "Q5_1", "Q5_K"}
FLOATS = {"F64", "F32", "F16", "BF16"}


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
    scales, minimums = _k_scales(blocks)
    values = _k_nibbles(blocks[..., 16:]).reshape(*scales.shape, BLOCK_SIZE)
    return BlockQuantized(4, pack_nibbles(values), scales, 8 * scales - minimums)


def _q5_0(rows: ByteArray) -> BlockQuantized:
    """Scale f16, 4 bytes with the fifth bits, 16 bytes as in Q4_0; a weight is (value - 16) * scale."""
    blocks = rows.reshape(len(rows), -1, 6 + BLOCK_SIZE // 2)
    return BlockQuantized(8, _fives(blocks[..., 2:]) + _CENTRED, _floats(blocks, 0))


def _q5_1(rows: ByteArray) -> BlockQuantized:
    """Scale f16, minimum f16, then as in Q5_0; a weight is value * scale + minimum."""
    blocks = rows.reshape(len(rows), -1, 8 + BLOCK_SIZE // 2)
    scales, minimums = _floats(blocks, 0), _floats(blocks, 2)
    return BlockQuantized(8, _fives(blocks[..., 4:]) + _CENTRED, scales, minimums + 16 * scales)


def _q5_k(rows: ByteArray) -> BlockQuantized:
    """Super-blocks as in Q4_K, with 32 bytes before the values: bit i of byte j is the fifth one of weight j
    of block i.
    """
    blocks = rows.reshape(len(rows), -1, 4 + 12 + 32 + 128)
    scales, minimums = _k_scales(blocks)
    low = _k_nibbles(blocks[..., 48:])
    places = np.arange(_K_BLOCKS, dtype=np.uint8)[:, None]
    high = blocks[..., 16:48][..., None, :] >> places & np.uint8(1)
    values = (low | high << np.uint8(4)).reshape(*scales.shape, BLOCK_SIZE) + _CENTRED
    return BlockQuantized(8, values, scales, 16 * scales - minimums)


def _q6_k(rows: ByteArray) -> BlockQuantized:
    """Super-blocks of 256: 128 bytes of low halves, 64 of high quarters, 16 signed factors, scale f16.

    A weight of block i, which has 16, is (value - 32) * scale * factor[i]. Each half of a super-block has 64
    bytes of low halves, for weights 0-63 the low and for 64-127 the high ones, and 32 bytes of quarters, for
    four times 32 weights from the lowest bits on.
    """
    blocks = rows.reshape(len(rows), -1, 128 + 64 + 16 + 2)
    low = blocks[..., :128].reshape(*blocks.shape[:2], 2, 1, 64)
    low = np.concatenate([low & 0xF, low >> 4], axis=-2).reshape(*blocks.shape[:2], 2, 4, 32)
    places = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 1, 32) >> places & np.uint8(3)
    values = (low | high << np.uint8(4)).reshape(len(rows), -1, 16) + np.uint8(128 - 32)
    factors = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).astype(np.float32)
    scales = (_floats(blocks, 208)[..., None] * factors).reshape(len(rows), -1)
    return BlockQuantized(8, values, scales)


def _k_scales(blocks: ByteArray) -> tuple[FloatArray, FloatArray]:
    """Return the scales and minimums [rows, blocks of 32] of K-quants."""
    factors, minimum_factors = _k_factors(blocks[..., 4:16])
    shape = (len(blocks), -1)
    scales = (_floats(blocks, 0)[..., None] * factors).reshape(shape)
    return scales, (_floats(blocks, 2)[..., None] * minimum_factors).reshape(shape)


def _k_nibbles(halves: ByteArray) -> ByteArray:
    """Return the values [rows, super-blocks, 8, 32] of 128 bytes: four times a low block and a high one."""
    pairs = halves.reshape(*halves.shape[:2], _K_BLOCKS // 2, 1, BLOCK_SIZE)
    return np.concatenate([pairs & 0xF, pairs >> 4], axis=-2).reshape(
        *halves.shape[:2], _K_BLOCKS, BLOCK_SIZE
    )


def _fives(packed: ByteArray) -> ByteArray:
    """Unpack 4 bytes of fifth bits, the first weight's lowest, and 16 bytes of the others into 32 values."""
    high = np.unpackbits(np.ascontiguousarray(packed[..., :4]), axis=-1, bitorder="little")
    halves = packed[..., 4:]
    fives: ByteArray = np.concatenate([halves & 0xF, halves >> 4], axis=-1) | high << np.uint8(4)
    return fives


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
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
