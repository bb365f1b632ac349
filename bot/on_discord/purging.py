"""Deletes for good, from time to time, what resets put aside and nobody brought back in time."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from bot.conversation.service import UNDO_TIME
from storage.conversations import Conversations
from storage.errors import StorageError

_log = logging.getLogger(__name__)

INTERVAL_S = 60.0


async def keep_purging(conversations: Conversations) -> None:
    """Go on for ever."""
    while True:
        try:
            await conversations.purge_resets(before=datetime.now(UTC) - UNDO_TIME)
        except StorageError as error:
            _log.warning("What was forgotten could not be deleted yet: %s", error)
        await asyncio.sleep(INTERVAL_S)
