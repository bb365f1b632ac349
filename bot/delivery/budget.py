"""How many requests the bot may make of Discord, and how the edits of growing answers slow down for that.

Discord counts all requests of a bot together, whichever process makes them. Long before these are too many,
every answer that grows is edited less often, all alike, while endings come as before. Times are values it is
given. Knows nothing of Discord.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

PER_SECOND = 50
"""That is Discord's limit for a bot."""
USED = 0.9
"""Of that; what is left is for processes that do not know yet that others have more to do."""
FOR_GROWING = 0.8
"""Of what is used, as much is for answers that grow. The rest is for endings, and for all else."""
WINDOW_S = 1.0


class RequestBudget:
    """What one process may do. share: of what all processes may do together, from 0 to 1."""

    def __init__(self, share: Callable[[], float] = lambda: 1.0) -> None:
        self._share = share
        self._times_s: deque[float] = deque(maxlen=PER_SECOND)

    @property
    def per_second(self) -> float:
        """How many requests may be made in a second, at least one."""
        return max(1.0, PER_SECOND * USED * self._share())

    def interval_s(self, num_growing: int) -> float:
        """Return how long is to be between two edits of each of so many answers that grow."""
        return num_growing / max(1.0, self.per_second * FOR_GROWING)

    def note(self, at_s: float) -> None:
        """Count a request."""
        self._times_s.append(at_s)

    def wait_s(self, at_s: float) -> float:
        """Return for how long no more requests may be made; 0 is that one may."""
        num = int(self.per_second)
        if len(self._times_s) < num:
            return 0.0
        return max(0.0, self._times_s[-num] + WINDOW_S - at_s)
