"""Saves what is there of a running answer from time to time, so that a crash loses little of it."""

from __future__ import annotations

import asyncio
import logging

from bot.tasks import Tasks
from storage.conversations import Conversations
from storage.errors import StorageError

_log = logging.getLogger(__name__)

CHECKPOINT_INTERVAL_S = 2.0


class Checkpointer:
    """Saves the text of a running answer from time to time, one write at a time, none of them waited for."""

    def __init__(self, conversations: Conversations, answer_id: int) -> None:
        self._conversations = conversations
        self._answer_id = answer_id
        self._due_s = 0.0
        self._tasks = Tasks()

    def offer(self, text: str) -> None:
        """Save `text` if the last save is long enough ago and done."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._due_s or self._tasks:
            return
        self._due_s = now_s + CHECKPOINT_INTERVAL_S
        self._tasks.start(self._save(text), f"saving answer {self._answer_id}")

    async def wait(self) -> None:
        """Wait until nothing is being written."""
        await self._tasks.wait()

    async def _save(self, text: str) -> None:
        try:
            await self._conversations.checkpoint(self._answer_id, text)
        except StorageError as error:
            _log.warning("Answer %d: the partial text was not saved: %s", self._answer_id, error)
