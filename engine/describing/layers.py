"""What the layers of a decoder may have, each by its name. What families do not differ in is not said."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Norms(StrEnum):
    """Where the norms of a layer stand: around its attention, and likewise around its MLP."""

    BEFORE = "before"
    AFTER = "after"
    """What comes out is normed, before it is added."""
    AROUND = "around"
    """Both of these."""

    @property
    def has_before(self) -> bool:
        return self is not Norms.AFTER

    @property
    def has_after(self) -> bool:
        return self is not Norms.BEFORE


class QueryKeyNorm(StrEnum):
    """How queries and keys are normed before they are rotated."""

    NONE = "none"
    HEAD = "head"
    """Each head by itself, all with the same weights."""
    WHOLE = "whole"
    """All heads of a token together."""


class Activation(StrEnum):
    """What a gate passes through."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"
    """GELU in its approximation by a tanh."""


class Rotation(StrEnum):
    """By which angles a layer rotates queries and keys."""

    MAIN = "main"
    LOCAL = "local"
    """`local_rope_theta` is the base, and nothing is scaled."""
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Layer:
    """What the attention of one layer has of its own."""

    window: int = 0
    """Tokens that it sees, the newest among them; 0 for all."""
    rotation: Rotation = Rotation.MAIN


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """What stretches the main rotation beside a linear factor. Each list has a value for each frequency."""

    divisors: tuple[float, ...] = ()
    """Frequencies are divided by these."""
    long_divisors: tuple[float, ...] = ()
    """The same for sequences that may exceed `original_context`."""
    ntk_factor: float = 1.0
    """Above 1, the base grows with the longest sequence that may exceed `original_context`."""
    original_context: int = 0
    magnitude: float = 1.0
    """Rotated values are multiplied by it."""


UNSCALED = RopeScaling()
