"""What is remembered of a conversation: shown to people, put aside, and brought back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from bot.conversation.jobs import StopReason
from bot.conversation.queues import AnswerQueues
from storage.conversations import ConversationRef, Conversations, Message
from storage.resets import Reset
from storage.summaries import Summary

UNDO_TIME = timedelta(minutes=10)
"""How long a reset can be undone."""


class Memory:
    """Messages and summaries of conversations. `on_removed` is told of what is put aside or deleted."""

    def __init__(
        self, queues: AnswerQueues, conversations: Conversations, on_removed: Callable[[], None]
    ) -> None:
        self._queues = queues
        self._conversations = conversations
        self._on_removed = on_removed

    async def transcript(self, ref: ConversationRef, limit: int) -> list[Message]:
        """Return the newest messages of a conversation, oldest first."""
        return await self._conversations.recent(await self._conversations.open(ref), limit)

    async def summaries(self, ref: ConversationRef) -> list[Summary]:
        """Return what was summed up of a conversation, oldest first."""
        found = await self._conversations.summaries.of(await self._conversations.open(ref))
        return [summary for summary in found if summary.content]

    async def forget_summaries(self, ref: ConversationRef) -> None:
        """Delete what was summed up in a conversation, not to be made again."""
        await self._conversations.summaries.delete(await self._conversations.open(ref))
        self._queues.reread(ref.channel_id)
        self._on_removed()

    async def reset(self, ref: ConversationRef, *, by_user_id: int, at: datetime) -> Reset:
        """Stop everything in a conversation and put all that was said aside."""
        async with self._queues.entrance(ref.channel_id):
            self._queues.stop_conversation(ref.channel_id, StopReason.RESET)
            conversation_id = await self._conversations.open(ref)
            reset = await self._conversations.reset(conversation_id, by_user_id=by_user_id, at=at)
        self._queues.reread()
        self._on_removed()
        return reset

    async def undo_reset(self, reset: Reset, *, by_user_id: int, at: datetime) -> Reset:
        """Bring back what a reset put aside. Raises `NotFoundError` after `UNDO_TIME` or a second time."""
        async with self._queues.entrance(reset.channel_id):
            undone = await self._conversations.undo_reset(
                reset.id, by_user_id=by_user_id, at=at, not_before=at - UNDO_TIME
            )
        self._queues.reread()
        return undone
