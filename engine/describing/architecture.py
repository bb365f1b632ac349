"""What a decoder is made of: the one description that conversion, graphs, caches and sizes share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from enum import StrEnum
from functools import cache

from engine.describing.layers import UNSCALED, Activation, Layer, Norms, QueryKeyNorm, RopeScaling
from engine.errors import ModelFormatError

MOST_LAYERS = 1024
"""The largest models have some 130; a damaged file must not make us count to a million millions."""
_MOST_TOKENS = 2**31
_HEAD_DIM_UNIT = 16
"""ONNX Runtime's rotary attention refuses other head sizes, but only when it runs."""


class Precision(StrEnum):
    """How the weights of the linear layers are stored and multiplied."""

    FP32 = "fp32"
    FP16 = "fp16"
    """Half the disk; the CPU, which computes in float32, widens them when the model is loaded."""
    INT8 = "int8"
    """8-bit weights in blocks of 32 with one float scale each; activations are quantised on the fly."""
    INT4 = "int4"
    """4-bit weights likewise; embedding, head and what a source holds in 5 bits or more have 8."""

    @property
    def runs_on_gpu(self) -> bool:
        """Return whether a GPU takes such weights too: its attention knows no single precision."""
        return self is not Precision.FP32


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What a decoder is. Raises `ModelFormatError` when its parts do not fit each other.

    What has a default is as Llama 2 has it.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rms_norm_eps: float
    tied_embeddings: bool
    rope_factor: float = 1.0
    """Linear rope scaling: positions are divided by it."""
    rope_size: int = 0
    """Values of each head that are rotated, the first ones; 0 for all."""
    rope_scaling: RopeScaling = UNSCALED
    local_rope_theta: float = 10000.0
    layers: tuple[Layer, ...] = ()
    """Empty where all are alike."""
    norms: Norms = Norms.BEFORE
    query_key_norm: QueryKeyNorm = QueryKeyNorm.NONE
    activation: Activation = Activation.SILU
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    attention_scale: float = 0.0
    """Products of queries and keys are multiplied by it; 0 for one over the root of a head's size."""
    attention_softcap: float = 0.0
    """Where above 0, these products are bent to stay below it."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """What attention and MLP give is multiplied by it, before it is added."""
    logit_scale: float = 1.0
    logit_softcap: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.num_layers, self.hidden_size, self.intermediate_size, self.num_heads, self.num_kv_heads)
        if min(*sizes, self.head_dim, self.vocab_size, self.context_length) < 1:
            raise ModelFormatError("The model's description has a dimension below 1.")
        if self.num_layers > MOST_LAYERS:
            raise ModelFormatError(f"The model's description has {self.num_layers} layers: it is damaged.")
        if self.num_heads % self.num_kv_heads:
            raise ModelFormatError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key/value heads evenly."
            )
        if self.head_dim % _HEAD_DIM_UNIT:
            raise ModelFormatError(
                f"Heads of {self.head_dim} values are not supported: no multiple of {_HEAD_DIM_UNIT}."
            )
        if not all(0 < x < math.inf for x in (self.rope_theta, self.rope_factor, self.rms_norm_eps)):
            raise ModelFormatError("The model's rope_theta, rope factor and rms_norm_eps must be above 0.")
        self._check_rotation()
        self._check_factors()

    def _check_rotation(self) -> None:
        scaling, size = self.rope_scaling, self.rotated_size
        if not 0 <= self.rope_size <= self.head_dim or self.rope_size % _HEAD_DIM_UNIT:
            raise ModelFormatError(
                f"{self.rope_size} rotated values of {self.head_dim} are not supported: no multiple of "
                f"{_HEAD_DIM_UNIT}."
            )
        for divisors in (scaling.divisors, scaling.long_divisors):
            if len(divisors) not in (0, size // 2) or not all(0 < x < math.inf for x in divisors):
                raise ModelFormatError(f"The model's rope factors are no {size // 2} numbers above 0.")
        numbers = (self.local_rope_theta, scaling.magnitude, scaling.ntk_factor)
        if not all(0 < x < math.inf for x in numbers) or scaling.original_context < 0:
            raise ModelFormatError("The model's rope scaling must be of numbers above 0.")
        depends_on_length = bool(scaling.long_divisors) or scaling.ntk_factor > 1
        if depends_on_length and not scaling.original_context:
            raise ModelFormatError("The model's rope scaling does not say which context it stretches.")
        windows = [layer.window for layer in self.layers]
        if len(windows) not in (0, self.num_layers) or not all(0 <= x < _MOST_TOKENS for x in windows):
            raise ModelFormatError(f"The model's description is not one of {self.num_layers} layers.")

    def _check_factors(self) -> None:
        factors = (self.embedding_scale, self.residual_scale, self.logit_scale)
        zero_is_off = (self.attention_scale, self.attention_softcap, self.logit_softcap)
        if not (all(0 < x < math.inf for x in factors) and all(0 <= x < math.inf for x in zero_is_off)):
            raise ModelFormatError("The model's scales and soft caps must be numbers above 0.")

    def layer(self, index: int) -> Layer:
        """Return what a layer's attention has of its own."""
        return self.layers[index] if self.layers else Layer()

    @property
    def beyond_llama_2(self) -> frozenset[str]:
        """The names of what it has and a Llama 2 has not, though positions may be divided by a factor."""
        optional = [entry for entry in fields(self) if entry.default is not MISSING]
        return frozenset(entry.name for entry in optional if getattr(self, entry.name) != entry.default) - {
            "rope_factor"
        }

    def shortened(self, num_layers: int) -> DecoderConfig:
        """Return a decoder of the first `num_layers` layers."""
        return replace(self, num_layers=num_layers, layers=self.layers[:num_layers])

    @property
    def rotated_size(self) -> int:
        """Values of each head that are rotated."""
        return self.rope_size or self.head_dim

    @property
    def score_scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.attention_scale or self.head_dim**-0.5

    @property
    def qkv_size(self) -> int:
        """Width of the packed query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights in total, norms included; a tied head is counted once."""
        return sum(tensor.num_weights for tensor in decoder_tensors(self))

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Bytes of KV cache that one token takes in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value


class Role(StrEnum):
    """What a tensor is for, which decides how its weights are kept."""

    VECTOR = "vector"
    """One number for each feature, as a norm has: float32 in every precision."""
    LINEAR = "linear"
    """A layer's matrix, in the model's precision."""
    EMBEDDING = "embedding"
    """It and the head bear 4 bits badly, and are small beside the layers: 8 bits at least."""
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class DecoderTensor:
    """A tensor that the decoder's graph takes: those of a source in `parts`, one below the other.

    parts: their names in the source, and how many rows each has. columns: inputs of a matrix, 0 of a vector.
    """

    name: str
    role: Role
    parts: Mapping[str, int]
    columns: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs of a matrix, or the length of a vector."""
        return self.part_shape(sum(self.parts.values()))

    @property
    def is_transposed(self) -> bool:
        """Whether its numbers lie [inputs, outputs] on the disk: rows are multiplied by it."""
        return self.role in (Role.LINEAR, Role.HEAD)

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """The order in which its numbers lie on the disk."""
        return self.shape[::-1] if self.is_transposed else self.shape

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    def part_shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of one of its parts."""
        return (rows, self.columns) if self.columns else (rows,)


@cache
def decoder_tensors(config: DecoderConfig) -> tuple[DecoderTensor, ...]:
    """Return all tensors of a decoder, in the order in which they are written.

    Here an architecture says what its layers have; conversion, graphs, sizes and inspection follow.
    """
    hidden, vocab = config.hidden_size, config.vocab_size
    tensors = [DecoderTensor("embed", Role.EMBEDDING, {"embed": vocab}, hidden)]
    for layer in range(config.num_layers):
        tensors += _layer_tensors(config, f"layers.{layer}.")
    tensors.append(DecoderTensor("final_norm", Role.VECTOR, {"final_norm": hidden}))
    if not config.tied_embeddings:
        tensors.append(DecoderTensor("head", Role.HEAD, {"head": vocab}, hidden))
    return tuple(tensors)


def _layer_tensors(config: DecoderConfig, prefix: str) -> Iterator[DecoderTensor]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def vector(name: str, *sizes: int, **parts: int) -> DecoderTensor:
        within = {prefix + part: size for part, size in parts.items()} or {prefix + name: sizes[0]}
        return DecoderTensor(prefix + name, Role.VECTOR, within)

    def matrix(name: str, columns: int, **parts: int) -> DecoderTensor:
        within = {prefix + part: rows for part, rows in parts.items()}
        return DecoderTensor(prefix + name, Role.LINEAR, within, columns)

    if config.norms.has_before:
        yield vector("attn_norm", hidden)
    yield matrix("qkv", hidden, q=queries, k=keys, v=keys)
    if config.qkv_bias:
        yield vector("qkv_bias", q_bias=queries, k_bias=keys, v_bias=keys)
    if config.query_key_norm is not QueryKeyNorm.NONE:
        is_whole = config.query_key_norm is QueryKeyNorm.WHOLE
        yield vector("q_norm", queries if is_whole else config.head_dim)
        yield vector("k_norm", keys if is_whole else config.head_dim)
    yield matrix("o", queries, o=hidden)
    if config.output_bias:
        yield vector("o_bias", hidden)
    if config.norms.has_after:
        yield vector("attn_post_norm", hidden)
    if config.norms.has_before:
        yield vector("mlp_norm", hidden)
    yield matrix("gate_up", hidden, gate=inner, up=inner)
    if config.mlp_bias:
        yield vector("gate_up_bias", gate_bias=inner, up_bias=inner)
    yield matrix("down", inner, down=hidden)
    if config.mlp_bias:
        yield vector("down_bias", hidden)
    if config.norms.has_after:
        yield vector("mlp_post_norm", hidden)


@cache
def source_shapes(config: DecoderConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each tensor that a source of these dimensions has, by its name."""
    return {
        part: tensor.part_shape(rows)
        for tensor in decoder_tensors(config)
        for part, rows in tensor.parts.items()
    }


LLAMA_2_SIZES = {
    "Llama 2 7B": DecoderConfig(32, 4096, 11008, 32, 32, 128, 32000, 4096, 1e4, 1e-5, tied_embeddings=False),
    "Llama 2 13B": DecoderConfig(40, 5120, 13824, 40, 40, 128, 32000, 4096, 1e4, 1e-5, tied_embeddings=False),
}
"""The dimensions of the models that this program is for."""
