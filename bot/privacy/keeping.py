"""How long things are kept. Values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keeping:
    """In days.

    retention_days: messages; 0 is until somebody deletes them. grace_days: what belongs to servers that we
    were removed from and to deleted channels.
    """

    retention_days: int = 0
    grace_days: int = 30
