"""Whose turn it is when several conversations wait. Pure bookkeeping, no clock.

Servers take turns, in a server its people do, and then the channels: nobody gets ahead by asking in many
places, and no busy server keeps a quiet one waiting. Knows nothing of how answers are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAX_REMEMBERED = 4096
"""Servers, people and channels whose last turn is known; one that was forgotten counts as never served."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who waits where. `arrival` numbers claims in their order."""

    channel_id: int
    user_id: int | None
    server_id: int | None
    arrival: int


class FairOrder:
    """Orders claims by how long ago their server, person and channel had a turn."""

    def __init__(self) -> None:
        self._last_turn: dict[tuple[str, int | None], int] = {}
        self._num_turns = 0

    def ordered(self, claims: Iterable[Claim]) -> list[Claim]:
        """Return the claims in the order in which they stand now, the next one first."""
        return sorted(claims, key=self._key)

    def served(self, claim: Claim) -> None:
        """Note that a claim has its turn now."""
        self._num_turns += 1
        for name in _names(claim):
            self._last_turn.pop(name, None)
            self._last_turn[name] = self._num_turns
        while len(self._last_turn) > MAX_REMEMBERED:
            del self._last_turn[next(iter(self._last_turn))]

    def _key(self, claim: Claim) -> tuple[int, ...]:
        return (*(self._last_turn.get(name, 0) for name in _names(claim)), claim.arrival)


def _names(claim: Claim) -> tuple[tuple[str, int | None], ...]:
    """Return server, person and channel; a direct message stands for itself as a server does."""
    user = ("user", claim.user_id)
    return (
        user if claim.server_id is None else ("server", claim.server_id),
        user,
        ("channel", claim.channel_id),
    )
