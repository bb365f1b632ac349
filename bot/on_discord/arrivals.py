"""The order in which messages came, channel by channel, whatever has to be fetched or looked up for each.

Knows nothing of what messages are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Arrivals:
    """Lines of those who came and are not through yet; nothing is kept of a channel where nobody stands."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[asyncio.Event]] = {}

    @contextmanager
    def enter(self, channel_id: int) -> Iterator[asyncio.Event]:
        """Stand in line; what is given is set once all who came before have left."""
        line = self._lines.setdefault(channel_id, deque())
        is_first = asyncio.Event()
        line.append(is_first)
        line[0].set()
        try:
            yield is_first
        finally:
            line.remove(is_first)
            if line:
                line[0].set()
            else:
                del self._lines[channel_id]
