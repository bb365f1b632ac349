"""Deletes for good, from time to time, what resets put aside and nobody brought back in time.

Then the engines let go of what they keep of deleted texts, too: at most once a round, since it makes the next
turn of every conversation slower.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from bot.conversation.service import UNDO_TIME
from storage.conversations import Conversations
from storage.errors import StorageError

_log = logging.getLogger(__name__)

INTERVAL_S = 60.0


class Purging:
    """The rounds. `drop_caches` is called where something was deleted since the last one."""

    def __init__(self, conversations: Conversations, drop_caches: Callable[[], None]) -> None:
        self._conversations = conversations
        self._drop_caches = drop_caches
        self._has_deleted = False

    def note(self) -> None:
        """Something was deleted."""
        self._has_deleted = True

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            try:
                if await self._conversations.purge_resets(before=datetime.now(UTC) - UNDO_TIME):
                    self.note()
            except StorageError as error:
                _log.warning("What was forgotten could not be deleted yet: %s", error)
            if self._has_deleted:
                self._has_deleted = False
                self._drop_caches()
            await asyncio.sleep(INTERVAL_S)
