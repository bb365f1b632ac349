"""What a check finds: the value that `check` shows a line for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    is_good: bool
    subject: str
    sentence: str
