"""Numbers out of a configuration that somebody else wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.errors import ModelFormatError

Json = Mapping[str, Any]


def size_of(config: Json, key: str, default: int | None = None) -> int:
    """Return a whole number above 0; `default` where there is none. Raises `ModelFormatError`."""
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or value < 1:
        raise ModelFormatError(f"The model's {key} must be a whole number above 0, not {value!r}.")
    return value


def number_of(config: Json, key: str, default: float | None = None, *, none: float | None = None) -> float:
    """Return a number; `default` where there is no such key, `none` where it is null.

    Raises `ModelFormatError`.
    """
    value = config.get(key, default)
    if value is None:
        value = none
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ModelFormatError(f"The model's {key} must be a number, not {value!r}.")
    return float(value)
