"""The ways in which models stretch their rotation, each brought to one divisor for each frequency. Pure.

Formulas and defaults are those of transformers' `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math

import numpy as np

from engine.describing.layers import RopeScaling


def llama3(
    size: int, theta: float, *, factor: float, low: float, high: float, original_context: int
) -> RopeScaling:
    """Divide slow frequencies by `factor`, leave fast ones, and pass from one to the other between.

    size: values of a head that are rotated. low, high: turns within the original context, from which on a
    frequency is divided no more in full, or not at all.
    """
    turns = original_context * theta ** -(np.arange(0, size, 2) / size) / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return RopeScaling(divisors=_floats(1 / ((1 - share) / factor + share)))


def yarn(
    size: int,
    theta: float,
    *,
    factor: float,
    original_context: int,
    fast: float = 32.0,
    slow: float = 1.0,
    magnitude: float,
    truncate: bool = True,
) -> RopeScaling:
    """Divide slow frequencies by `factor` and leave fast ones, over a ramp of frequencies between.

    fast, slow: turns within the original context where the ramp begins and ends.
    """

    def place(turns: float) -> float:
        return size * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = place(fast), place(slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    ramp = np.clip((np.arange(size // 2) - first) / (max(last - first, 0) or 0.001), 0.0, 1.0)
    return RopeScaling(divisors=_floats(1 / (ramp / factor + 1 - ramp)), magnitude=magnitude)


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """Return what YaRN multiplies rotated values by."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def long_magnitude(factor: float, original_context: int) -> float:
    """Return what LongRoPE multiplies rotated values by."""
    return math.sqrt(1 + math.log(factor) / math.log(original_context)) if factor > 1 else 1.0


def _floats(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
