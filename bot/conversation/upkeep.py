"""Keeps what is stored in step with messages that are deleted or edited, and with an answer that is written.

Knows nothing of Discord and of how texts are cut into messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from bot.conversation.intake import Arrivals
from bot.conversation.jobs import StopReason
from bot.conversation.queues import AnswerQueues
from bot.errors import EmptyQuestionError
from bot.tasks import Tasks
from storage.conversations import Conversations, Message, Role
from storage.errors import StorageError
from storage.turns import NewestTurn

_log = logging.getLogger(__name__)
CHECKPOINT_INTERVAL_S = 2.0
Cut = Callable[[str], Sequence[str]]
"""Returns the stretches of an answer's text that its messages show."""


class Upkeep:
    """Follows deletions and edits.

    `check` raises what makes a text of a conversation unanswerable; `on_removed` is told of texts that went.
    """

    def __init__(
        self,
        queues: AnswerQueues,
        arrivals: Arrivals,
        conversations: Conversations,
        check: Callable[[int, str], Awaitable[None]],
        on_removed: Callable[[], None],
    ) -> None:
        self._queues = queues
        self._arrivals = arrivals
        self._conversations = conversations
        self._check = check
        self._on_removed = on_removed

    async def message_deleted(
        self, channel_id: int, discord_id: int, cut: Cut = lambda text: (text,)
    ) -> None:
        """Forget a deleted question with its answers, or what a deleted part of an answer showed.

        `cut` returns the stretches of an answer's text that its messages show.
        """
        self._arrivals.withdraw(discord_id=discord_id)
        async with self._queues.entrance(channel_id):
            was_quoted = await self._conversations.turns.forget_quotes(discord_id)
            deleted = await self._conversations.delete_question(discord_id)
            for answer_id in () if deleted is None else deleted.answer_ids:
                self._queues.stop(answer_id, StopReason.QUESTION_DELETED)
            message = await self._conversations.find_by_discord_id(discord_id)
            if message is not None:
                await self._part_deleted(message, discord_id, cut)
        if was_quoted or deleted is not None or message is not None:
            self._queues.reread(channel_id)
            self._on_removed()

    async def forget_conversation(self, channel_id: int) -> None:
        """Forget a conversation as if it had never been, settings included."""
        async with self._queues.entrance(channel_id):
            await self._conversations.delete(channel_id)
        self._on_removed()

    async def question_edited(self, channel_id: int, discord_id: int, content: str) -> NewestTurn | None:
        """Remember the new text of a question; return the turn if its answer could be made again for it.

        Raises, and keeps the old text, what a new question would raise.
        """
        async with self._queues.entrance(channel_id):
            asked = await self._conversations.find_by_discord_id(discord_id)
            content = content.strip()
            if asked is None or asked.role is not Role.USER or asked.content == content:
                return None
            if not content:
                raise EmptyQuestionError
            await self._check(asked.conversation_id, content)
            jobs = self._queues.jobs(channel_id)
            newest = await self._conversations.turns.newest(asked.conversation_id)
            job = None if newest is None else next((j for j in jobs if j.answer_id == newest.answer.id), None)
            await self._conversations.turns.edit_question(discord_id, content)
            self._queues.reread(channel_id)
            self._on_removed()
            is_newest = newest is not None and newest.answer.reply_to == asked.id
            if job is not None and job.has_begun:
                job.is_outdated = is_newest
        return newest if job is None and is_newest else None

    async def _part_deleted(self, answer: Message, discord_id: int, cut: Cut) -> None:
        is_unfinished = self._queues.find(answer.id) is not None
        self._queues.stop(answer.id, StopReason.ANSWER_DELETED)
        if is_unfinished:
            await self._conversations.detach_part(discord_id)
            return
        shown_by, stretches = await self._conversations.parts(answer.id), cut(answer.content)
        kept = [stretch for part, stretch in zip(shown_by, stretches, strict=False) if part != discord_id]
        if len(shown_by) != len(stretches):  # who shows what cannot be told any more: none of it may stay
            kept = []
        await self._conversations.detach_part(discord_id)
        await self._conversations.turns.shorten_answer(answer.id, "\n\n".join(one.strip() for one in kept))


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
