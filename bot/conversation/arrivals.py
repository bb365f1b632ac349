"""Messages that came and are not through yet: stored, refused, or taken back meanwhile.

What takes its time, as a file does, is fetched while others come; each is taken in the order in which it
came. Nothing is kept of a conversation where nobody stands. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bot.errors import QuestionGoneError


@dataclass(eq=False, slots=True)
class Arrival:
    """One message on its way."""

    discord_id: int
    author_id: int
    is_first: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once all that came before have left."""
    has_left: asyncio.Event = field(default_factory=asyncio.Event)
    is_withdrawn: bool = False
    _edit: Any = None

    def edit(self, message: Any) -> None:
        """Let the newest version of the message be taken, if it is not taken yet."""
        self._edit = message

    def take_edit(self) -> Any:
        """Return the newest version of the message, None if there is none that was not returned before."""
        edit, self._edit = self._edit, None
        return edit

    def check(self) -> None:
        """Raise `QuestionGoneError` if the message is not to be taken any more."""
        if self.is_withdrawn:
            raise QuestionGoneError


class Arrivals:
    """The lines of all conversations."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[Arrival]] = {}

    @contextmanager
    def enter(self, channel_id: int, discord_id: int, author_id: int) -> Iterator[Arrival]:
        """Stand in line until the end of the `with`."""
        arrival = Arrival(discord_id, author_id)
        self._lines.setdefault(channel_id, deque()).append(arrival)
        self._move_up(channel_id)
        try:
            yield arrival
        finally:
            arrival.has_left.set()
            self._lines[channel_id].remove(arrival)
            self._move_up(channel_id)

    def find(self, channel_id: int, discord_id: int) -> Arrival | None:
        """Return the message with this id, if it is on its way."""
        return next((one for one in self._lines.get(channel_id, ()) if one.discord_id == discord_id), None)

    def withdraw(self, *, discord_id: int | None = None, author_id: int | None = None) -> None:
        """Let a message that was deleted, or all of a person, not be taken; nobody waits for it any more."""
        for channel_id, line in list(self._lines.items()):
            for arrival in line:
                if discord_id == arrival.discord_id or author_id == arrival.author_id:
                    arrival.is_withdrawn = True
                    arrival.is_first.set()
            self._move_up(channel_id)

    def _move_up(self, channel_id: int) -> None:
        line = self._lines[channel_id]
        first = next((arrival for arrival in line if not arrival.is_withdrawn), None)
        if first is not None:
            first.is_first.set()
        if not line:
            del self._lines[channel_id]
