"""What the fields and tensors of a GGUF file say of the decoder: a table of architectures, and its reader.

Defaults are llama.cpp's. What a file holds says more than its fields: biases and fused matrices are there or
not, whatever the architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.convert import rope_scaling
from engine.convert.families import refusal
from engine.describing.architecture import MOST_LAYERS, DecoderConfig
from engine.describing.layers import UNSCALED, Activation, Layer, Norms, QueryKeyNorm, RopeScaling, Rotation
from engine.errors import ModelFormatError

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = frozenset({ROPE_FREQS, ROPE_LONG, ROPE_SHORT})
_LARGEST = 1e12
"""Of bases and factors: real ones are below a thousand millions."""
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the fields of an architecture mean.

    is_permuted: whether the rows of q and k are in interleaved order. window: where no field says it.
    whole_every: of so many layers the last one sees all tokens, 0 where none does. wide_layers: the number of
    layers of the one size whose queries are scaled by hidden size / heads. rope_every: of so many layers the
    last one rotates nothing.
    """

    is_permuted: bool = False
    norms: Norms = Norms.BEFORE
    query_key_norm: QueryKeyNorm = QueryKeyNorm.NONE
    activation: Activation = Activation.SILU
    window: int = 0
    whole_every: int = 0
    has_local_rope: bool = False
    local_theta: float | None = None
    is_gemma: bool = False
    wide_layers: int = 0
    softcaps: tuple[float, float] = (0.0, 0.0)
    rope_every: int = 0


_OLMO = Architecture(norms=Norms.AFTER, query_key_norm=QueryKeyNorm.WHOLE, whole_every=4, has_local_rope=True)
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(is_permuted=True),
    "mistral3": Architecture(is_permuted=True),
    "granite": Architecture(is_permuted=True),
    "smollm3": Architecture(is_permuted=True, rope_every=4),
    "qwen2": Architecture(),
    "qwen3": Architecture(query_key_norm=QueryKeyNorm.HEAD),
    "phi3": Architecture(),
    "olmo2": _OLMO,
    "gemma2": Architecture(
        norms=Norms.AROUND,
        activation=Activation.GELU_TANH,
        window=4096,
        whole_every=2,
        is_gemma=True,
        wide_layers=46,
        softcaps=(50.0, 30.0),
    ),
    "gemma3": Architecture(
        norms=Norms.AROUND,
        query_key_norm=QueryKeyNorm.HEAD,
        activation=Activation.GELU_TANH,
        whole_every=6,
        has_local_rope=True,
        local_theta=10000.0,
        is_gemma=True,
        wide_layers=62,
    ),
}
"""By `general.architecture`."""


class GGUFConfigReader:
    """Reads one file's description. Raises `ModelFormatError`, or whatever a damaged field leads to."""

    def __init__(
        self,
        field: Callable[[str, Any], Any],
        tensors: Collection[str],
        vocab_size: int,
        floats: Callable[[str], FloatArray],
    ) -> None:
        """field: returns a field, or a default; one that is missing without a default is refused.

        tensors: the names of all tensors. floats: returns one of them.
        """
        self._name = str(field("general.architecture", None))
        self._field, self._tensors, self._floats = field, tensors, floats
        found = ARCHITECTURES.get(self._name)
        if found is None or self._size("expert_count", 0):
            raise refusal("mixtral" if found is not None else self._name)
        self.architecture = found
        self.notes: tuple[str, ...] = ()
        self.config = self._config(vocab_size)

    def _config(self, vocab_size: int) -> DecoderConfig:
        own, hidden, heads = (
            self.architecture,
            self._size("embedding_length"),
            self._size("attention.head_count"),
        )
        head_dim = self._size("attention.key_length", hidden // heads)
        if self._size("attention.value_length", head_dim) != head_dim:
            raise ModelFormatError("The model's keys and values differ in size, which is not supported.")
        theta, size = self._number("rope.freq_base", 10000.0), self._size("rope.dimension_count", head_dim)
        if size != head_dim and own.is_permuted:
            raise ModelFormatError("The model rotates only a part of each head, which is not supported.")
        scaling, context = self._scaling(size, theta)
        return DecoderConfig(
            num_layers=self._size("block_count"),
            hidden_size=hidden,
            intermediate_size=self._size("feed_forward_length"),
            num_heads=heads,
            num_kv_heads=self._size("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=vocab_size,
            context_length=context,
            rope_theta=theta,
            rms_norm_eps=self._epsilon(),
            tied_embeddings="output.weight" not in self._tensors,
            rope_factor=self._factor() if self._kind() == "linear" else 1.0,
            rope_size=size if size != head_dim else 0,
            rope_scaling=scaling,
            local_rope_theta=self._number("rope.freq_base_swa", own.local_theta or theta),
            layers=self._layers(context),
            norms=own.norms,
            query_key_norm=own.query_key_norm,
            activation=own.activation,
            qkv_bias=self._has("attn_q.bias") or self._has("attn_qkv.bias"),
            output_bias=self._has("attn_output.bias"),
            mlp_bias=self._has("ffn_down.bias"),
            **self._factors(hidden, heads),
        )

    def _epsilon(self) -> float:
        with np.errstate(over="ignore"):  # what is endless is refused
            return float(np.float32(self._value("attention.layer_norm_rms_epsilon")))

    def _factors(self, hidden: int, heads: int) -> dict[str, float]:
        """Return what is multiplied and bent, by the names of `DecoderConfig`."""
        own = self.architecture
        attention, last = own.softcaps
        said: dict[str, float] = {
            "attention_softcap": self._number("attn_logit_softcapping", attention) if attention else 0.0,
            "logit_softcap": self._number("final_logit_softcapping", last),
        }
        if not own.is_gemma:
            return {
                **said,
                "attention_scale": self._number("attention.scale", 0.0),
                "embedding_scale": self._number("embedding_scale", 0.0) or 1.0,
                "residual_scale": self._number("residual_scale", 0.0) or 1.0,
                "logit_scale": 1.0 / (self._number("logit_scale", 0.0) or 1.0),
            }
        said["embedding_scale"] = math.sqrt(hidden)
        if own.wide_layers == self._size("block_count"):
            said["attention_scale"] = (hidden / heads) ** -0.5
        return said

    def _layers(self, context: int) -> tuple[Layer, ...]:
        own, count = self.architecture, self._size("block_count")
        window = self._size("attention.sliding_window", own.window)
        if count > MOST_LAYERS:  # which is refused
            return ()
        pattern = self._value("attention.sliding_window_pattern", own.whole_every or count + 1)
        if isinstance(pattern, list):
            slides = [bool(slide) for slide in pattern]
        else:
            slides = [(layer + 1) % (int(pattern) or count + 1) != 0 for layer in range(count)]
        is_seen = window > 0 and len(slides) == count
        if window > 0 and not is_seen:
            raise ModelFormatError(f"The model's sliding_window_pattern is not one of {count} layers.")
        layers = []
        for layer, slide in enumerate(slides if is_seen else [False] * count):
            rotation = Rotation.LOCAL if slide and own.has_local_rope else Rotation.MAIN
            if own.rope_every and (layer + 1) % own.rope_every == 0:
                rotation = Rotation.NONE
            layers.append(Layer(window if slide and window < context else 0, rotation))
        return tuple(layers) if {*layers} != {Layer()} else ()

    def _kind(self) -> str:
        """Return how the rotation is stretched. Without a type a factor is linear; older files call it so."""
        return str(self._value("rope.scaling.type", "linear"))

    def _factor(self) -> float:
        return self._number("rope.scaling.factor", self._number("rope.scale_linear", 1.0)) or 1.0

    def _scaling(self, size: int, theta: float) -> tuple[RopeScaling, int]:
        """Return what stretches the rotation, and how long sequences may become."""
        kind, context = self._kind(), self._size("context_length")
        original = self._size("rope.scaling.original_context_length", context)
        if self._number("attention.temperature_scale", 0.0) and original < context:
            # Queries are made larger by their position from there on.
            self.notes = (f"Its context is {original:,} tokens here: beyond, its attention is another one.",)
            context = original
        if ROPE_FREQS in self._tensors:
            return RopeScaling(self._divisors(ROPE_FREQS)), context
        if ROPE_SHORT in self._tensors and ROPE_LONG in self._tensors:
            magnitude = self._number("rope.scaling.attn_factor", 1.0)
            factors = self._divisors(ROPE_SHORT), self._divisors(ROPE_LONG)
            return RopeScaling(*factors, original_context=original, magnitude=magnitude), context
        if kind == "yarn":
            factor = self._factor()
            magnitude = rope_scaling.yarn_magnitude(factor)
            whole = self._number("rope.scaling.yarn_log_multiplier", 0.0)
            if whole:
                magnitude /= rope_scaling.yarn_magnitude(factor, whole)
            if not 0 < factor < _LARGEST or not 1 < theta < _LARGEST:
                raise ModelFormatError("The model's rope scaling must be of numbers above 0.")
            scaling = rope_scaling.yarn(
                size,
                theta,
                factor=factor,
                original_context=original,
                fast=self._number("rope.scaling.yarn_beta_fast", 32.0),
                slow=self._number("rope.scaling.yarn_beta_slow", 1.0),
                magnitude=self._number("rope.scaling.yarn_attn_factor", magnitude),
            )
            return scaling, max(context, int(original * factor)) if not self.notes else context
        if kind not in ("linear", "none"):
            raise ModelFormatError(f"The model uses rope scaling of the kind {kind!r}, not supported here.")
        return UNSCALED, context

    def _divisors(self, tensor: str) -> tuple[float, ...]:
        return tuple(float(value) for value in self._floats(tensor).reshape(-1))

    def _has(self, part: str) -> bool:
        return f"blk.0.{part}" in self._tensors

    def _value(self, key: str, default: Any = None) -> Any:
        return self._field(f"{self._name}.{key}", default)

    def _size(self, key: str, default: int | None = None) -> int:
        return int(self._value(key, default))

    def _number(self, key: str, default: float) -> float:
        return float(self._value(key, default))
