"""Reads what a Hugging Face `config.json` says of a Llama model. Pure: objects in, values out.

Defaults are those of transformers' `LlamaConfig`. What would change the model's results and is not computed
here is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.describing.architecture import DecoderConfig
from engine.errors import ModelFormatError

Json = Mapping[str, Any]


def read_decoder_config(config: Json) -> DecoderConfig:
    """Return the decoder's dimensions. Raises `ModelFormatError`."""
    _refuse_unsupported(config)
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    theta, factor = _rope(config)
    return DecoderConfig(
        num_layers=_size(config, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=_size(config, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_size(config, "head_dim", hidden // heads),
        vocab_size=_size(config, "vocab_size"),
        context_length=_size(config, "max_sequence_length", _size(config, "max_position_embeddings", 2048)),
        rope_theta=theta,
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        tied_embeddings=config.get("tie_word_embeddings") is True,
        rope_factor=factor,
    )


def read_token_ids(config: Json, key: str, vocab_size: int, default: int | None = None) -> list[int]:
    """Return the ids under `key`, if any; `default` where there is no such key. Raises `ModelFormatError`."""
    raw = config.get(key, default)
    ids = raw if isinstance(raw, list) else [] if raw is None else [raw]
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ModelFormatError(f"The model's {key} {token!r} is outside its vocabulary.")
    return ids


def _refuse_unsupported(config: Json) -> None:
    kind = config.get("model_type")
    if kind != "llama":
        raise ModelFormatError(
            f"The model is of the type {kind!r}; this program runs the llama architecture."
        )
    if config.get("quantization_config"):
        raise ModelFormatError("The model's weights are quantised already. Get them in float16 or bfloat16.")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ModelFormatError(f"The model has biases ({key}), which are not supported.")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelFormatError(f"The model's activation is {activation!r}; only silu is supported.")


def _rope(config: Json) -> tuple[float, float]:
    """Return theta and the linear scaling factor, from the new key or the old ones."""
    new, old = (config.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise ModelFormatError("The model's rope settings are damaged.")
    scaling = new or old
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ModelFormatError(f"The model uses rope scaling of the type {kind!r}, which is not supported.")
    for holder in (config, scaling):
        if holder.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelFormatError("The model rotates only a part of each head, which is not supported.")
    theta = _number(config, "rope_theta", 10000.0)
    factor = _number(scaling, "factor", 1.0) if kind == "linear" else 1.0
    return _number(new, "rope_theta", theta), factor


def _size(config: Json, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or value < 1:
        raise ModelFormatError(f"The model's {key} must be a whole number above 0, not {value!r}.")
    return value


def _number(config: Json, key: str, default: float) -> float:
    value = config.get(key, default)
    if type(value) not in (int, float):
        raise ModelFormatError(f"The model's {key} must be a number, not {value!r}.")
    return float(value)
