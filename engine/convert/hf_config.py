"""Reads from the `config.json` of a Hugging Face folder what the decoder is.

What would change the model's results and is not computed is refused by its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.convert.families import refusal
from engine.convert.hf_families import FAMILIES, FULL, SLIDING, Family
from engine.convert.hf_rope import RopeReader
from engine.convert.keys import Json, number_of, size_of
from engine.convert.other_files import another_form, quantisation
from engine.describing.architecture import MOST_LAYERS, DecoderConfig
from engine.describing.layers import Activation, Layer, QueryKeyNorm, Rotation
from engine.errors import ModelFormatError

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
}
_NESTED = {"gemma3", "mistral3"}
"""Models for images too, whose text part is described by itself."""


@dataclass(frozen=True, slots=True)
class Described:
    """A decoder as its folder describes it, with its family, and what is to be said of it."""

    config: DecoderConfig
    family: Family
    notes: tuple[str, ...]


def text_part(config: Json) -> tuple[Json, bool]:
    """Return what describes the decoder, and whether that is a part of a larger model."""
    if str(config.get("model_type")) not in _NESTED or not isinstance(config.get("text_config"), dict):
        return config, False
    text = {"model_type": f"{config['model_type']}_text", **config["text_config"]}
    for key in ("bos_token_id", "eos_token_id"):
        said = [part[key] for part in (text, config) if part.get(key) is not None]
        if said:  # either may name some of them
            text[key] = [token for ids in said for token in (ids if isinstance(ids, list) else [ids])]
    outer = {key: config[key] for key in ("quantization_config", "quantization") if config.get(key)}
    return {**text, **outer}, True


def check_family(config: Json) -> None:
    """Raise `ModelFormatError` where a folder's model is of a family that does not run here."""
    _family(text_part(config)[0])


def _family(described: Json) -> Family:
    family = FAMILIES.get(str(described.get("model_type")))
    if family is None:
        raise refusal(described.get("model_type"))
    return family


def describe_decoder(config: Json, *, has_head: bool, stored_as: str = "F32") -> Described:
    """Read the text part of a folder's configuration. Raises `ModelFormatError`.

    has_head: whether its files hold one. stored_as: the safetensors type of its embedding.
    """
    try:
        return _described(config, has_head=has_head, stored_as=stored_as)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelFormatError(f"The model's description is damaged: {error}.") from error


def _described(config: Json, *, has_head: bool, stored_as: str) -> Described:
    described, is_part = text_part(config)
    family = _family(described)
    described = {**family.defaults, **described}
    _refuse_unsupported(described)
    hidden, heads = size_of(described, "hidden_size"), size_of(described, "num_attention_heads")
    head_dim = size_of(described, "head_dim", hidden // heads)
    rope = RopeReader(described, family, head_dim)
    tied = described.get("tie_word_embeddings") is True
    if is_part and "tie_word_embeddings" not in described:
        tied = not has_head
    decoder = DecoderConfig(
        num_layers=size_of(described, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=size_of(described, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=size_of(described, "num_key_value_heads", heads),
        head_dim=head_dim,
        vocab_size=size_of(described, "vocab_size"),
        context_length=rope.context_length,
        rope_theta=rope.theta,
        rms_norm_eps=number_of(described, "rms_norm_eps", 1e-6),
        tied_embeddings=tied,
        rope_factor=rope.factor,
        rope_size=rope.size if rope.size != head_dim else 0,
        rope_scaling=rope.scaling,
        local_rope_theta=rope.local_theta,
        layers=_layers(described, family, rope.context_length),
        norms=family.norms,
        query_key_norm=family.query_key_norm,
        activation=_activation(described),
        qkv_bias=family.qkv_bias or _is_on(described, family, "attention_bias"),
        output_bias=_is_on(described, family, "attention_bias"),
        mlp_bias=_is_on(described, family, "mlp_bias"),
        **_factors(described, family, hidden, head_dim, stored_as),
    )
    images = "Only the part of the model that reads and writes text is taken: it sees no images."
    return Described(decoder, family, (*([images] if is_part else ()), *rope.notes))


def _refuse_unsupported(config: Json) -> None:
    method = quantisation(config)
    if method:
        raise ModelFormatError(f"The model's weights are quantised already. {another_form(method)}")
    if config.get("use_bidirectional_attention"):
        raise ModelFormatError("The model looks ahead as well as back: it is not made to write text.")


def _is_on(config: Json, family: Family, key: str) -> bool:
    return key in family.biases and bool(config.get(key))


def _activation(config: Json) -> Activation:
    name = config.get("hidden_activation") or config.get("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise ModelFormatError(
            f"The model's activation is {name!r}; only {', '.join(_ACTIVATIONS)} are supported."
        )
    return _ACTIVATIONS[name]


def _layers(config: Json, family: Family, context: int) -> tuple[Layer, ...]:
    """Return what each layer has of its own; nothing where all are as Llama's."""
    count = size_of(config, "num_hidden_layers")
    if count > MOST_LAYERS:  # which is refused
        return ()
    rotates = _rotating(config, count)
    kinds = _kinds(config, family, count)
    window = config.get("sliding_window") if SLIDING in kinds else None
    if window is not None and (type(window) is not int or window < 1):
        raise ModelFormatError(f"The model's sliding_window must be a whole number above 0, not {window!r}.")
    layers = []
    for kind, is_rotating in zip(kinds, rotates, strict=True):
        is_local = kind == SLIDING
        rotation = Rotation.LOCAL if is_local and family.has_local_rope else Rotation.MAIN
        seen = window if is_local and window and window < context else 0
        layers.append(Layer(seen, rotation if is_rotating else Rotation.NONE))
    return tuple(layers) if set(layers) != {Layer()} else ()


def _rotating(config: Json, count: int) -> list[bool]:
    """Return for each layer whether it rotates queries and keys at all: SmolLM3 says which do."""
    if "no_rope_layer_interval" not in config:
        return [True] * count
    given = config.get("no_rope_layers")
    if given is None:
        interval = size_of(config, "no_rope_layer_interval")
        return [(layer + 1) % interval != 0 for layer in range(count)]
    if not isinstance(given, list) or len(given) != count:
        raise ModelFormatError(f"The model's no_rope_layers do not describe its {count} layers.")
    return [bool(rotates) for rotates in given]


def _kinds(config: Json, family: Family, count: int) -> list[str]:
    """Return the kind of each layer's attention."""
    is_off = config.get("use_sliding_window", True) is False or config.get("sliding_window") is None
    if family.whole_every is None or (is_off and not config.get("layer_types")):
        return [FULL] * count
    kinds = config.get("layer_types") if family.has_kinds else None
    if kinds is None:
        first = size_of(config, "max_window_layers", 0) if config.get("max_window_layers") else 0
        every = size_of(config, "sliding_window_pattern", family.whole_every or count + 1)
        kinds = [FULL if i < first or (i + 1) % every == 0 else SLIDING for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or not {*kinds} <= {FULL, SLIDING}:
        raise ModelFormatError(f"The model's layer_types do not describe its {count} layers as known here.")
    return kinds


def _factors(config: Json, family: Family, hidden: int, head_dim: int, stored_as: str) -> dict[str, float]:
    """Return what is multiplied and bent, by the names of `DecoderConfig`."""
    if family.is_gemma:
        asked = number_of(config, "query_pre_attn_scalar", 256)
        softcap = config.get("attn_logit_softcapping") if family.query_key_norm is QueryKeyNorm.NONE else None
        return {
            "attention_scale": 0.0 if asked == head_dim else asked**-0.5,
            "attention_softcap": float(softcap or 0.0),
            "embedding_scale": rounded_as(hidden**0.5, stored_as),
            "logit_softcap": number_of(config, "final_logit_softcapping", 0.0, none=0.0),
        }
    if family.multiplies:
        return {
            "attention_scale": number_of(config, "attention_multiplier", 1.0),
            "embedding_scale": number_of(config, "embedding_multiplier", 1.0),
            "residual_scale": number_of(config, "residual_multiplier", 1.0),
            "logit_scale": 1.0 / (number_of(config, "logits_scaling", 1.0) or math.inf),
        }
    return {}


def rounded_as(value: float, kind: str) -> float:
    """Round a number as weights of a safetensors type hold it: that is how the model was trained."""
    if kind == "F16":
        return float(np.float16(value))
    if kind == "BF16":
        bits = np.float32(value).view(np.uint32)
        nearest = (int(bits) + 0x7FFF + (int(bits) >> 16 & 1)) >> 16 << 16
        return float(np.uint32(nearest).view(np.float32))
    return float(np.float32(value))
