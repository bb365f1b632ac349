"""What the authors of a model say of it: how to sample from it, and which tokens end its turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.types import RANGES

_GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_GGUF = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Our names, and what follows `general.sampling.` in a GGUF file."""
END_TOKENS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
)
"""Control tokens that end a turn or a text in every model that has them, whether its files say so or not."""


def read_sampling(generation: Mapping[str, Any]) -> dict[str, float]:
    """Return the advice in a `generation_config.json`, as far as it can be followed.

    Where it says that answers are not sampled, the values beside it have no meaning.
    """
    if generation.get("do_sample") is False:
        return {}
    return _usable({name: generation.get(name) for name in _GENERATION})


def read_gguf_sampling(field: Callable[[str, Any], Any]) -> dict[str, float]:
    """Return the advice in a GGUF file; `field` returns a metadata field or its default."""
    return _usable({name: field(f"general.sampling.{key}", ()) for name, key in _GGUF.items()})


def _usable(values: Mapping[str, Any]) -> dict[str, float]:
    """Return those values that are in range; none else can be meant."""
    return {
        name: int(value) if name == "top_k" else round(float(value), 6)
        for name, value in values.items()
        if type(value) in (int, float) and RANGES[name].low <= value <= RANGES[name].high
    }
