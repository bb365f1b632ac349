"""The angles by which attention rotates queries and keys, as tables over positions. Pure numpy.

How a rotation is stretched may depend on how long sequences may become. That is settled when a model is
loaded, not while a sequence grows: what is cached was rotated as what comes is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.describing.architecture import DecoderConfig
from engine.describing.layers import Rotation

DoubleArray = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]
_POSITIONS_AT_ONCE = 2**14
"""Bounds what the angles take in double precision, for contexts of a million tokens."""


def rotary_tables(
    config: DecoderConfig, rotation: Rotation, max_tokens: int, num_positions: int
) -> tuple[FloatArray, FloatArray]:
    """Return cos and sin [num_positions, rotated / 2] for sequences of up to `max_tokens`."""
    is_main = rotation is Rotation.MAIN
    frequencies = (
        main_frequencies(config, max_tokens) if is_main else _powers(config, config.local_rope_theta)
    )
    positions = np.arange(num_positions) / (config.rope_factor if is_main else 1.0)
    magnitude = config.rope_scaling.magnitude if is_main else 1.0
    cos, sin = (np.empty((num_positions, len(frequencies)), np.float32) for _ in range(2))
    for start in range(0, num_positions, _POSITIONS_AT_ONCE):
        part = slice(start, start + _POSITIONS_AT_ONCE)
        angles = np.outer(positions[part], frequencies)
        cos[part], sin[part] = np.cos(angles) * magnitude, np.sin(angles) * magnitude
    return cos, sin


def main_frequencies(config: DecoderConfig, max_tokens: int) -> DoubleArray:
    """Return what positions are multiplied by, [rotated / 2], before a linear factor."""
    scaling, theta = config.rope_scaling, config.rope_theta
    is_long = max_tokens > scaling.original_context > 0
    if is_long and scaling.ntk_factor > 1:
        stretched = scaling.ntk_factor * max_tokens / scaling.original_context - (scaling.ntk_factor - 1)
        theta *= stretched ** (config.rotated_size / (config.rotated_size - 2))
    divisors = scaling.long_divisors if is_long and scaling.long_divisors else scaling.divisors
    frequencies = _powers(config, theta)
    return frequencies / np.array(divisors) if divisors else frequencies


def _powers(config: DecoderConfig, theta: float) -> DoubleArray:
    """Return theta^(-2i / rotated)."""
    powers: DoubleArray = theta ** -(np.arange(0, config.rotated_size, 2) / config.rotated_size)
    return powers
