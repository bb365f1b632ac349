"""Whose turn it is when several wait. Pure bookkeeping, no clock.

Groups take turns, in a group its members do, and so on down to single conversations: nobody gets ahead by
asking in many places, and no busy group keeps a quiet one waiting. While one waits, any other group gets at
most one turn more than one's own, any other member likewise. Knows nothing of how answers are made.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

MAX_REMEMBERED = 4096
"""Keys whose last turn is known; one that was forgotten counts as never served."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who waits. keys: from the widest group to the narrowest. arrival: numbers claims in their order."""

    keys: tuple[Hashable, ...]
    arrival: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn, and when those who had it were served before; 0 for never."""

    number: int
    before: Mapping[Hashable, int]


class FairOrder:
    """Orders claims by how long ago their group, person and conversation had a turn."""

    def __init__(self) -> None:
        self._last_turn: dict[Hashable, int] = {}
        self._num_turns = 0

    def ordered(self, claims: Iterable[Claim]) -> list[Claim]:
        """Return the claims in the order in which they stand now, the next one first."""
        return sorted(claims, key=self._rank)

    def served(self, claim: Claim) -> Turn:
        """Note that a claim has its turn now."""
        self._num_turns += 1
        turn = Turn(self._num_turns, {key: self._last_turn.get(key, 0) for key in claim.keys})
        for key in claim.keys:
            self._last_turn.pop(key, None)
            self._last_turn[key] = turn.number
        while len(self._last_turn) > MAX_REMEMBERED:
            del self._last_turn[next(iter(self._last_turn))]
        return turn

    def returned(self, turn: Turn) -> None:
        """Note that a turn came to nothing: whoever had it stands where they stood before."""
        for key, before in turn.before.items():
            if self._last_turn.get(key) == turn.number:
                self._last_turn[key] = before

    def _rank(self, claim: Claim) -> tuple[int, ...]:
        return (*(self._last_turn.get(key, 0) for key in claim.keys), claim.arrival)
