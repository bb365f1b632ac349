"""The shape of a Llama-architecture decoder: the one description that conversion, graph and cache share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from engine.errors import ModelFormatError

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


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Dimensions of a decoder. Raises `ModelFormatError` when they do not fit each other."""

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

    def __post_init__(self) -> None:
        sizes = (self.num_layers, self.hidden_size, self.intermediate_size, self.num_heads, self.num_kv_heads)
        if min(*sizes, self.head_dim, self.vocab_size, self.context_length) < 1:
            raise ModelFormatError("The model's description has a dimension below 1.")
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

    @property
    def qkv_size(self) -> int:
        """Width of the packed query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights in total, norms included; a tied head is counted once."""
        attention = self.hidden_size * self.qkv_size + self.num_heads * self.head_dim * self.hidden_size
        mlp = 3 * self.hidden_size * self.intermediate_size
        layers = self.num_layers * (attention + mlp + 2 * self.hidden_size)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return layers + embeddings + self.hidden_size

    def kv_bytes_per_token(self, bytes_per_value: int = 4) -> int:
        """Bytes of KV cache that one token takes in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value


LLAMA_2_SIZES = {
    "Llama 2 7B": DecoderConfig(32, 4096, 11008, 32, 32, 128, 32000, 4096, 1e4, 1e-5, tied_embeddings=False),
    "Llama 2 13B": DecoderConfig(40, 5120, 13824, 40, 40, 128, 32000, 4096, 1e4, 1e-5, tied_embeddings=False),
}
"""The dimensions of the models that this program is for."""
