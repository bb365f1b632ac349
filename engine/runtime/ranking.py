"""Finding tokens by the order of their weights without sorting a vocabulary. Pure numpy.

Weights are float32, not negative. The largest comes first, and of equal ones the lower place.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

_MAX_SORTED = 2048
"""So many weights are sorted; more are counted."""
_BITS = 12
"""A count has 2 to the power of so many classes."""
_CHUNK = 8192
"""So much is computed at once: memory that is not in the cache, or comes anew, costs more than the sums."""


class Ranking:
    """The sums of weights from the largest down.

    Many weights are not sorted but counted: a class has those whose bits, which grow as the numbers do, begin
    alike, and only the class in which a sum lies is looked into.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._is_sorted = len(weights) <= _MAX_SORTED
        if self._is_sorted:
            self._keys = np.argsort(-weights, kind="stable")
            self._sums = np.cumsum(weights[self._keys], dtype=np.float64)
            return
        bits = weights.view(np.int32)
        behind = bits.max() - bits
        self._shift = max(0, int(behind.max()).bit_length() - _BITS)
        self._keys = (behind >> self._shift).astype(np.uint16)
        masses = np.zeros(1 << _BITS)
        for start in range(0, len(weights), _CHUNK):
            part = slice(start, start + _CHUNK)
            masses += np.bincount(self._keys[part], weights[part], len(masses))
        self._sums = np.cumsum(masses)

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._sums[-1])

    def reach(self, target: float) -> tuple[int, float]:
        """Return the place of the weight with which the sum passes `target`, and the sum with it.

        Where all of them do not pass it, that is the last weight that is not 0.
        """
        target = min(target, _just_below(self.total))
        at = int(np.searchsorted(self._sums, target, side="right"))
        if self._is_sorted:
            return int(self._keys[at]), float(self._sums[at])
        before = float(self._sums[at - 1]) if at else 0.0
        places = np.flatnonzero(self._keys == at)
        if self._shift:
            place, mass = Ranking(self._weights[places]).reach(target - before)
            return int(places[place]), before + mass
        weight = float(self._weights[places[0]])  # as all of them
        number = min(int((target - before) // weight), len(places) - 1)
        return int(places[number]), before + (number + 1) * weight


def bound(logits: Weights, number: int) -> float:
    """Return a logit that the `number` largest reach, and few others."""
    num_groups = 4 << max(number, 128).bit_length()
    num_grouped = len(logits) // num_groups * num_groups
    if not num_grouped:
        return -math.inf
    # Each of the groups with the largest maxima has a logit that reaches the least of these.
    maxima = logits[:num_grouped].reshape(-1, num_groups).max(axis=0)
    maxima.partition(num_groups - number)
    return float(maxima[-number])


def largest(weights: Weights, number: int) -> Places:
    """Return the places of the `number` largest weights, in order."""
    if len(weights) <= 4 * number:
        return np.argsort(-weights, kind="stable")[:number]
    least = np.partition(weights, -number)[-number]
    above, equal = np.flatnonzero(weights > least), np.flatnonzero(weights == least)
    places = np.sort(np.concatenate([above, equal[: number - len(above)]]))
    return places[np.argsort(-weights[places], kind="stable")]


def reach_in_place(logits: Weights, share: float) -> int:
    """Return the place where the sum of exp(`logits`), in the order in which they lie, passes its `share`.

    In float64: of many tokens that are alike each has less than float32 can tell.
    """
    starts = range(0, len(logits), _CHUNK)
    sums = np.cumsum([np.exp(logits[start : start + _CHUNK], dtype=np.float64).sum() for start in starts])
    target = min(share * float(sums[-1]), _just_below(sums[-1]))
    chunk = int(np.searchsorted(sums, target, side="right"))
    start, before = starts[chunk], float(sums[chunk - 1]) if chunk else 0.0
    part = np.cumsum(np.exp(logits[start : start + _CHUNK], dtype=np.float64))
    return start + int(np.searchsorted(part, min(target - before, _just_below(part[-1])), side="right"))


def _just_below(total: float) -> float:
    """Return what a sum of `total` passes: the same numbers, added up in another order, may round to less."""
    return float(np.nextafter(total, 0.0))
