"""Token buckets: how often something may be done, by key. Pure, with a clock from outside; bounded memory.

Knows nothing of who the keys are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

MAX_BUCKETS = 50_000
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Rate:
    """What is limited, and to how many a minute; as many may come at once after a quiet minute."""

    key: Hashable
    per_minute: int


class Buckets:
    """Full at first; each act takes one token, and time brings them back."""

    def __init__(self, clock: Callable[[], float], *, max_buckets: int = MAX_BUCKETS) -> None:
        self._clock = clock
        self._max_buckets = max_buckets
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """Tokens, and when there were so many. The least recently used are forgotten, and so are full."""

    def wait_s(self, rate: Rate) -> float:
        """Return how long it takes until a token can be taken; 0 for now."""
        missing = 1.0 - self._level(rate)
        return max(0.0, missing * _MINUTE_S / rate.per_minute) if missing > 1e-9 else 0.0

    def take(self, rates: Iterable[Rate]) -> None:
        """Take a token from each, whether there is one or not: ask `wait_s` first."""
        now_s = self._clock()
        for rate in rates:
            self._levels[rate.key] = (max(0.0, self._level(rate) - 1.0), now_s)
            self._levels.move_to_end(rate.key)
        while len(self._levels) > self._max_buckets:
            self._levels.popitem(last=False)

    def _level(self, rate: Rate) -> float:
        capacity = float(rate.per_minute)
        level, at_s = self._levels.get(rate.key, (capacity, 0.0))
        return min(capacity, level + (self._clock() - at_s) * rate.per_minute / _MINUTE_S)
