"""How many bytes a decoder takes: on disk, in memory as it runs, and what one step reads. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from engine import kernels
from engine.describing.architecture import DecoderConfig, DecoderTensor, Precision, Role, decoder_tensors
from engine.describing.stored import ALIGNMENT, BlockTensor, StoredTensor

BLOCK_SIZE = 32
"""Weights that share a scale, as a rule."""
_SCALE_BYTES = 4
_HALF_BYTES, _FULL_BYTES = 2, 4
_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
_FEW_BITS = ("int8", "int4")
_MOST_BITS_OF_BLOCKS = 8
_OUTER_BITS = {**_BITS, "int4": 8}
"""Of embedding and head."""
_RUN_AS = {"fp16": Precision.FP32}
"""The CPU computes in float32: half precision is widened when the model is loaded."""
_RUNNING_BYTES = 2 * _SCALE_BYTES + 4
"""Of a block in memory: ONNX Runtime's own scale beside ours, and the sum of its weights."""
PROCESS_BYTES = 128 * 2**20
"""Python, the libraries, and all that does not depend on the model."""
_TOKENIZER_BYTES, _TOKENIZER_BYTES_EACH = 8 * 2**20, 600
"""Of the library, and of each token."""
MAX_CHUNK = 512
"""Tokens of prompts that a step computes at most."""
GPU_LIBRARIES_BYTES = 3 * 2**29
"""CUDA's libraries, captured graphs and what the largest step needs beside weights and KV, on a GPU."""

USEFUL_CONTEXTS = 2
"""KV of so many whole contexts for each answer: of those that run, and of as many that may go on."""
_KV_SHARE = 0.75
"""Of the memory that is free beside the weights; the rest is a margin for all that grows besides."""

_CONVERSION_BYTES = 150 * 2**20
_CONVERSION_BYTES_PER_WEIGHT, _OF_FEW_BITS = 12, 7
"""As stored, as float32, as the test for numbers sees it, and as written, which is little in few bits."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of memory that a running model takes. beside: the process, tokenizer and what a step needs."""

    weights: int
    kv: int
    beside: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.beside


@dataclass(frozen=True, slots=True)
class Kept:
    """How a matrix is held: bits of a weight, and whether each block of few bits has a zero point.

    Of a source that holds numbers `bits` is 0: any precision can be made of it. block_size: weights of a
    block.
    """

    bits: int = 0
    has_zero_points: bool = False
    block_size: int = BLOCK_SIZE

    def bytes_each(self, scale_bytes: float) -> float:
        """Return the bytes of one weight, where a block takes `scale_bytes` besides its weights."""
        return self.bits / 8 + (scale_bytes / self.block_size if self.bits <= _MOST_BITS_OF_BLOCKS else 0)


Held = Mapping[str, Kept]
"""What a source or a folder holds, by the names of the decoder's tensors; a tensor left out is numbers."""
NUMBERS: Held = MappingProxyType({})


def held_in(tensors: Mapping[str, StoredTensor]) -> Held:
    """Return how a converted folder holds its matrices of few bits."""
    blocks = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, BlockTensor)}
    return {
        name: Kept(tensor.bits, tensor.zero_points is not None, tensor.block_size)
        for name, tensor in blocks.items()
    }


def kept_as(tensor: DecoderTensor, precision: Precision, held: Held = NUMBERS) -> Kept:
    """Return how a tensor is kept in a precision of a source that holds `held`, as `weights.py` has it."""
    if tensor.role is Role.VECTOR or precision not in _FEW_BITS:
        return Kept(32 if tensor.role is Role.VECTOR else _BITS[precision])
    had = held.get(tensor.name, Kept())
    if tensor.role is Role.EMBEDDING and had.has_zero_points:  # which a look-up does not know
        had = Kept()
    wanted = _BITS[precision] if tensor.role is Role.LINEAR else _OUTER_BITS[precision]
    return replace(had, bits=max(wanted, had.bits))


def bit_shares(config: DecoderConfig, precision: Precision, held: Held = NUMBERS) -> dict[int, float]:
    """Return which share of the matrices' weights is kept in how many bits, most bits first."""
    sums: dict[int, int] = {}
    for tensor in decoder_tensors(config):
        if tensor.role is not Role.VECTOR:
            bits = kept_as(tensor, precision, held).bits
            sums[bits] = sums.get(bits, 0) + tensor.num_weights
    return {bits: sums[bits] / sum(sums.values()) for bits in sorted(sums, reverse=True)}


def weight_bytes(config: DecoderConfig, precision: Precision, held: Held = NUMBERS) -> int:
    """Return the bytes of a converted model's weights on disk, with the scales of blocks."""
    return _weight_bytes(config, precision, held, _SCALE_BYTES)


def disk_bytes(config: DecoderConfig, precision: Precision, held: Held = NUMBERS) -> int:
    """Return how large the file of a converted model's weights becomes, where each array begins at a page."""
    total = 0
    for tensor in decoder_tensors(config):
        kept = kept_as(tensor, precision, held)
        few, num_blocks = kept.bits <= _MOST_BITS_OF_BLOCKS, tensor.num_weights // kept.block_size
        arrays = [tensor.num_weights * kept.bits // 8]
        arrays += [num_blocks * _SCALE_BYTES] * (int(few) + int(kept.has_zero_points))
        total += sum(-(-size // ALIGNMENT) * ALIGNMENT for size in arrays)
    return total


def gpu_weight_bytes(config: DecoderConfig, precision: Precision, held: Held = NUMBERS) -> int:
    """Return the bytes that the weights take on a GPU, where all is in half precision that is no block."""
    return _weight_bytes(config, precision, held, _HALF_BYTES)


def _weight_bytes(config: DecoderConfig, precision: Precision, held: Held, scale_bytes: int) -> int:
    """Return the bytes of all weights; norms, scales and zero points take `scale_bytes` each."""
    total = 0.0
    for tensor in decoder_tensors(config):
        kept = kept_as(tensor, precision, held)
        vector = tensor.role is Role.VECTOR
        a_block = scale_bytes * (2 if kept.has_zero_points else 1)
        total += tensor.num_weights * (scale_bytes if vector else kept.bytes_each(a_block))
    return int(total)


def running_weight_bytes(config: DecoderConfig, precision: Precision, held: Held = NUMBERS) -> int:
    """Return the bytes that the weights take in memory on the CPU.

    ONNX Runtime works on rearranged copies of the matrices, with a sum for each block of few bits. Of the
    mapped file it goes on reading the embedding, also where that is the head too, and the blocks' scales.
    Our own operators, where this machine has them, keep a copy alone.
    """
    stored, precision = precision, _RUN_AS.get(precision, precision)
    total = 0.0
    for tensor in decoder_tensors(config):
        kept = kept_as(tensor, precision, held)
        more_bytes = _SCALE_BYTES if kept.has_zero_points else 0
        running_bytes = _SCALE_BYTES if _is_own(kept) else _RUNNING_BYTES
        each: float = _SCALE_BYTES
        if tensor.role in (Role.LINEAR, Role.HEAD):
            each = kept.bytes_each(running_bytes + more_bytes)
        elif tensor.role is Role.EMBEDDING:
            each = kept.bytes_each(_SCALE_BYTES)
            if config.tied_embeddings:
                # Rows are read as they are stored, and the head has its own copy.
                each = kept_as(tensor, stored, held).bytes_each(_SCALE_BYTES) + kept.bytes_each(running_bytes)
        total += tensor.num_weights * each
    return int(total)


def kv_value_bytes(config: DecoderConfig, precision: Precision) -> int:
    """Return the bytes of each number of the KV cache on the CPU.

    Of weights in blocks our own attention keeps KV in half precision, ONNX Runtime's in full; what has full
    precision keeps it.
    """
    return _HALF_BYTES if kernels.attends(config.head_dim) and precision in _FEW_BITS else _FULL_BYTES


def kv_token_bytes(config: DecoderConfig, precision: Precision) -> int:
    """Return the bytes of KV cache that one token takes in all layers on the CPU."""
    return config.kv_bytes_per_token(kv_value_bytes(config, precision))


def gpu_kv_token_bytes(config: DecoderConfig) -> int:
    """Return the bytes of KV cache that one token takes in all layers on a GPU, in half precision."""
    return config.kv_bytes_per_token(_HALF_BYTES)


def _is_own(kept: Kept) -> bool:
    """Tell whether our own operator multiplies by a matrix that is held like this."""
    is_block = kept.bits <= _MOST_BITS_OF_BLOCKS and kept.block_size == kernels.BLOCK_SIZE
    return is_block and kernels.library() is not None


def beside_bytes(config: DecoderConfig, precision: Precision, held: Held = NUMBERS) -> int:
    """Return the bytes of memory that a model takes on the CPU beside weights and KV, without the process."""
    tokenizer = _TOKENIZER_BYTES + _TOKENIZER_BYTES_EACH * config.vocab_size
    matrices = (tensor for tensor in decoder_tensors(config) if tensor.role is Role.LINEAR)
    is_own = all(_is_own(kept_as(tensor, precision, held)) for tensor in matrices)
    # What the widest layer of the largest step holds at once, in float32: found by measuring.
    times = 2 if is_own else 4
    return tokenizer + MAX_CHUNK * 4 * times * (config.intermediate_size + config.hidden_size)


def footprint(
    config: DecoderConfig, precision: Precision, *, num_kv_tokens: int, held: Held = NUMBERS
) -> Footprint:
    """Return what the model takes with the KV of so many tokens."""
    return Footprint(
        running_weight_bytes(config, precision, held),
        num_kv_tokens * kv_token_bytes(config, precision),
        PROCESS_BYTES + beside_bytes(config, precision, held),
    )


def conversion_bytes(config: DecoderConfig, precision: Precision) -> int:
    """Return the bytes of memory that a conversion takes at its peak: the largest matrix in several forms."""
    largest = max(tensor.num_weights for tensor in decoder_tensors(config))
    each = _OF_FEW_BITS if precision in _FEW_BITS else _CONVERSION_BYTES_PER_WEIGHT
    return _CONVERSION_BYTES + each * largest


def kv_token_bound(
    kv_bytes_per_token: int, *, context: int, num_contexts: int, spare_bytes: int, kv_cache_mb: int = 0
) -> int:
    """Return how many tokens' KV is held at most on the CPU; one whole context always fits.

    num_contexts: as many as are of use. spare_bytes: free beside the weights. kv_cache_mb: the setting, 0 for
    as much as is of use and free.
    """
    allowed = kv_cache_mb * 2**20 or int(spare_bytes * _KV_SHARE)
    return max(context, min(num_contexts * context, allowed // kv_bytes_per_token))


def room_sentence(max_kv_tokens: int, context: int, max_answers: int) -> str:
    """Say how many answers can be made at once."""
    num_whole = max(1, min(max_answers, max_kv_tokens // context))
    room = f"Room for {num_whole} answer{'s' if num_whole > 1 else ''} of {context:,} tokens at once"
    return f"{room}." if num_whole == max_answers else f"{room}, or for up to {max_answers} shorter ones."


def step_bytes(
    config: DecoderConfig, precision: Precision, *, num_tokens: int, num_conversations: int
) -> int:
    """Return the bytes that one decode step must read at least: each weight once, and all KV.

    Of an embedding that is not the head too, a step reads only the rows of its tokens.
    """
    precision = _RUN_AS.get(precision, precision)
    weights = weight_bytes(config, precision)
    if not config.tied_embeddings:
        each = Kept(_OUTER_BITS[precision]).bytes_each(_SCALE_BYTES)
        weights -= int(config.vocab_size * config.hidden_size * each)
    return weights + num_conversations * num_tokens * kv_token_bytes(config, precision)


def gpu_step_bytes(
    config: DecoderConfig, precision: Precision, *, num_tokens: int, num_conversations: int
) -> int:
    """Return what `step_bytes` does, of a GPU: scales, norms and KV are in half precision, fp16 stays it.

    Raises `ValueError` for fp32, which no GPU runs.
    """
    if precision is Precision.FP32:
        raise ValueError("fp32 does not run on a GPU.")
    weights = gpu_weight_bytes(config, precision)
    if not config.tied_embeddings:
        each = Kept(_OUTER_BITS[precision]).bytes_each(_HALF_BYTES)
        weights -= int(config.vocab_size * config.hidden_size * each)
    return weights + num_conversations * num_tokens * gpu_kv_token_bytes(config)


_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def size(num_bytes: int) -> str:
    """Return a number of bytes with two or three digits and a unit."""
    for unit, name in _UNITS:
        if num_bytes >= unit:
            number = num_bytes / unit
            return f"{number:.0f} {name}" if number >= 100 else f"{number:.1f} {name}"
    return f"{num_bytes} B"
