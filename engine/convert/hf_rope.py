"""Reads from a Hugging Face configuration how queries and keys are rotated, as transformers does."""

from __future__ import annotations

from engine.convert import rope_scaling
from engine.convert.hf_families import FULL, SLIDING, Family
from engine.convert.keys import Json, number_of, size_of
from engine.describing.layers import RopeScaling
from engine.errors import ModelFormatError

_LARGEST = 1e12
"""Of bases and factors: real ones are below a thousand millions."""


class RopeReader:
    """The rotations, and how long sequences may become, from old and new keys."""

    def __init__(self, config: Json, family: Family, head_dim: int) -> None:
        self._config = config
        self.notes: tuple[str, ...] = ()
        self.local_theta = 10000.0
        self.values = self._main(family)
        self.theta = number_of(self.values, "rope_theta", number_of(config, "rope_theta", 10000.0))
        share = number_of(
            self.values, "partial_rotary_factor", number_of(config, "partial_rotary_factor", 1.0)
        )
        if share != 1.0 and not family.is_fused:
            raise ModelFormatError("The model rotates only a part of each head, which is not supported.")
        self.size = int(head_dim * share)
        self.kind = str(self.values.get("rope_type", self.values.get("type", "default")))
        if family.is_fused and self.kind in ("su", "yarn"):
            self.kind = "longrope"
        longest = size_of(config, "max_position_embeddings", 2048)
        self.context_length = size_of(config, "max_sequence_length", longest)
        self.factor = number_of(self.values, "factor", 1.0) if self.kind == "linear" else 1.0
        self.scaling = self._scaling()
        if self.values.get("llama_4_scaling_beta"):
            self._shorten()

    def _main(self, family: Family) -> Json:
        """Return the settings of the main rotation. `rope_scaling` comes before `rope_parameters`."""
        new, old = (self._config.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
        if not isinstance(new, dict) or not isinstance(old, dict):
            raise ModelFormatError("The model's rope settings are damaged.")
        if not family.has_local_rope:
            values = old or new
            return values[FULL] if isinstance(values.get(FULL), dict) else values
        main, local = ({**(new.get(kind) or {})} for kind in (FULL, SLIDING))
        main |= old
        main.setdefault("rope_theta", self._config.get("rope_theta", 1000000.0))
        base = self._config.get("rope_local_base_freq", 10000.0)
        if not family.is_gemma:
            base = self._config.get("rope_theta")
        self.local_theta = number_of(local, "rope_theta", float(base or 10000.0))
        if local.get("rope_type", "default") != "default":
            raise ModelFormatError("The model stretches the rotation of its windows, which is not supported.")
        return main

    def _scaling(self) -> RopeScaling:
        values, kind, size, theta = self.values, self.kind, self.size, self.theta
        if kind in ("default", "linear"):
            return RopeScaling()
        if kind == "dynamic":
            factor, original = number_of(values, "factor"), self.context_length
            self.context_length = int(original * factor)
            return RopeScaling(ntk_factor=factor, original_context=original)
        original = self._original()
        if not 1 < theta < _LARGEST:
            raise ModelFormatError("The model's rope scaling must be of numbers above 0.")
        if kind == "llama3":
            low, high = number_of(values, "low_freq_factor"), number_of(values, "high_freq_factor")
            factor = number_of(values, "factor")
            if not 0 < factor < _LARGEST or high == low:
                raise ModelFormatError("The model's rope scaling must be of numbers above 0.")
            return rope_scaling.llama3(
                size, theta, factor=factor, low=low, high=high, original_context=original
            )
        factor = values.get("factor") or self.context_length / original
        if kind == "yarn":
            return self._yarn(number_of({"factor": factor}, "factor"), original)
        if kind == "longrope":
            short, long = (self._list(f"{which}_factor") for which in ("short", "long"))
            magnitude = rope_scaling.long_magnitude(number_of({"factor": factor}, "factor"), original)
            magnitude = number_of(values, "attention_factor", magnitude, none=magnitude)
            return RopeScaling(short, long, original_context=original, magnitude=magnitude)
        raise ModelFormatError(f"The model uses rope scaling of the type {kind!r}, which is not supported.")

    def _yarn(self, factor: float, original: int) -> RopeScaling:
        values = self.values
        if not 0 < factor < _LARGEST:
            raise ModelFormatError("The model's rope scaling must be of numbers above 0.")
        magnitude = rope_scaling.yarn_magnitude(factor)
        whole, part = (values.get(key) for key in ("mscale_all_dim", "mscale"))
        if whole and part:
            magnitude = rope_scaling.yarn_magnitude(factor, part) / rope_scaling.yarn_magnitude(factor, whole)
        self.context_length = max(self.context_length, int(original * factor))
        return rope_scaling.yarn(
            self.size,
            self.theta,
            factor=factor,
            original_context=original,
            fast=number_of(values, "beta_fast", 32.0, none=32.0) or 32.0,
            slow=number_of(values, "beta_slow", 1.0, none=1.0) or 1.0,
            magnitude=number_of(values, "attention_factor", magnitude, none=magnitude),
            truncate=values.get("truncate", True) is not False,
        )

    def _original(self) -> int:
        """Return the context that is stretched: a key beside the settings comes before the one among them."""
        own = self.values.get("original_max_position_embeddings")
        return size_of(self._config, "original_max_position_embeddings", own or self.context_length)

    def _list(self, key: str) -> tuple[float, ...]:
        given = self.values.get(key)
        if not isinstance(given, list) or not all(type(number) in (int, float) for number in given):
            raise ModelFormatError(f"The model's {key} must be a list of numbers.")
        return tuple(float(number) for number in given)

    def _shorten(self) -> None:
        """Stay where queries are not yet made larger by their position, which is not computed here."""
        original = self._original()
        if original < self.context_length:
            self.notes = (f"Its context is {original:,} tokens here: beyond, its attention is another one.",)
            self.context_length = original
