"""How often messages are edited: one of them, and all answers in a channel together, which Discord counts.

Pure: times are values it is given.
"""

from __future__ import annotations

from collections import deque
from weakref import WeakValueDictionary

EDIT_INTERVAL_S = 1.3
"""Between two edits of one message: fewer than five in five seconds."""
MAX_EDITS = 4
WINDOW_S = 5.2
"""A little more than the five seconds in which Discord takes five: not all requests are equally fast."""


class ChannelPace:
    """When the next edit in one channel may be."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque(maxlen=MAX_EDITS)

    @property
    def free_at_s(self) -> float:
        """From when on one more edit is allowed."""
        return self._times_s[0] + WINDOW_S if len(self._times_s) == MAX_EDITS else 0.0

    def edits_at(self, at_s: float) -> None:
        """Count an edit."""
        self._times_s.append(at_s)

    def has_room(self, at_s: float) -> bool:
        """Tell whether edits that matter little may be made: answers themselves leave half of them."""
        return sum(at_s - edited_s < WINDOW_S for edited_s in self._times_s) < MAX_EDITS // 2


class Paces:
    """The pace of each channel for as long as somebody holds it."""

    def __init__(self) -> None:
        self._paces: WeakValueDictionary[int, ChannelPace] = WeakValueDictionary()

    def of(self, channel_id: int) -> ChannelPace:
        """Return the one pace of a channel."""
        pace = self._paces.get(channel_id)
        if pace is None:
            pace = self._paces[channel_id] = ChannelPace()
        return pace

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._paces)
