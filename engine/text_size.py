"""How a number of bytes is written for people. Pure."""

from __future__ import annotations

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def size(num_bytes: int) -> str:
    """Return a number of bytes with two or three digits and a unit."""
    for unit, name in _UNITS:
        if num_bytes >= unit:
            number = num_bytes / unit
            return f"{number:.0f} {name}" if number >= 100 else f"{number:.1f} {name}"
    return f"{num_bytes} B"
