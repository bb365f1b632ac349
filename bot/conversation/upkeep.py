"""What happens to what was said: people stop, take back, delete and edit it; a running answer is saved.

Knows nothing of Discord and of how texts are cut into messages; who may stop and take back is asked of the
caller, with the person who had asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from bot.conversation.intake import Arrivals
from bot.conversation.jobs import StopReason
from bot.conversation.queues import AnswerQueues
from bot.errors import EmptyQuestionError, NotAllowedError, NothingHereError
from bot.language.phrases import phrase
from bot.tasks import InOrder, Tasks
from storage.conversations import ConversationRef, Conversations, Message, Role
from storage.errors import AnswerPendingError, StorageError
from storage.turns import NewestTurn

_log = logging.getLogger(__name__)

CHECKPOINT_INTERVAL_S = 2.0
MaySteer = Callable[[int | None], bool]
"""Tells whether the person who acts may steer the answer to this person."""
Cut = Callable[[str], Sequence[str]]
"""Returns the stretches of an answer's text that its messages show."""


class Steering:
    """Acts on the newest of what was said in a conversation. `on_removed` is told of what is taken back."""

    def __init__(
        self, queues: AnswerQueues, conversations: Conversations, on_removed: Callable[[], None]
    ) -> None:
        self._queues = queues
        self._conversations = conversations
        self._on_removed = on_removed

    def stop(self, channel_id: int, may: MaySteer) -> int:
        """End the first answer, running or waiting, that one may end; return its id.

        Raises `NothingHereError` where nothing runs, `NotAllowedError` where all of it is others'.
        """
        jobs = [job for job in self._queues.jobs(channel_id) if not job.is_whole]
        if not jobs:
            raise NothingHereError(phrase("errors.nothing_runs"))
        for job in jobs:
            if may(job.asker_id):
                self._queues.stop(job.answer_id, StopReason.USER)
                return job.answer_id
        raise NotAllowedError(phrase("errors.not_the_asker"))

    async def undo(self, ref: ConversationRef, may: MaySteer) -> NewestTurn:
        """Forget the newest answer and what it answered; return it, with the messages that show it.

        Raises `NothingHereError`, `NotAllowedError`, or `AnswerPendingError` while it is being written.
        """
        async with self._queues.entrance(ref.channel_id):
            turn = await self.newest(ref, may)
            if self._queues.find(turn.answer.id) is not None:
                raise AnswerPendingError
            await self._conversations.turns.undo(turn.answer.id)
        self._queues.reread()
        self._on_removed()
        return turn

    async def is_newest(self, ref: ConversationRef, discord_id: int) -> bool:
        """Tell whether a Discord message shows the newest answer of a conversation."""
        turn = await self._conversations.turns.newest(await self._conversations.open(ref))
        return turn is not None and discord_id in turn.part_ids

    async def newest(self, ref: ConversationRef, may: MaySteer) -> NewestTurn:
        """Return the newest turn. Raises `NothingHereError` or `NotAllowedError`."""
        turn = await self._conversations.turns.newest(await self._conversations.open(ref))
        if turn is None:
            raise NothingHereError(phrase("errors.nothing_said"))
        if not may(turn.asker_id):
            raise NotAllowedError(phrase("errors.not_the_asker"))
        return turn


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
        self.edits = InOrder()
        """Those of one message count in the order in which they came, however long each takes to read."""

    async def message_deleted(
        self, channel_id: int, discord_id: int, cut: Cut = lambda text: (text,)
    ) -> None:
        """Forget a deleted question with its answers, or what a deleted part of an answer showed.

        `cut` returns the stretches of an answer's text that its messages show.
        """
        self._arrivals.withdraw(discord_id=discord_id)
        channel_id = await self._place_of(discord_id, channel_id)
        async with self._queues.entrance(channel_id):
            quoted_in = await self._conversations.turns.forget_quotes(discord_id)
            deleted = await self._conversations.delete_question(discord_id)
            for answer_id in () if deleted is None else deleted.answer_ids:
                self._queues.stop(answer_id, StopReason.QUESTION_DELETED)
            message = await self._conversations.find_by_discord_id(discord_id)
            if message is not None:
                await self._part_deleted(message, discord_id, cut)
        if quoted_in or deleted is not None or message is not None:
            for one in {channel_id, *quoted_in}:
                self._queues.reread(one)
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
        channel_id = await self._place_of(discord_id, channel_id)
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

    async def _place_of(self, discord_id: int, channel_id: int) -> int:
        """Return where a question is answered: in a thread, perhaps, that was opened for it."""
        message = await self._conversations.find_by_discord_id(discord_id)
        if message is None or message.role is not Role.USER:
            return channel_id
        return (await self._conversations.ref_of(message.conversation_id)).channel_id

    async def question_moved(
        self, channel_id: int, from_id: int, to_id: int, author_name: str, content: str
    ) -> bool:
        """Let the copy of a question take its place, in what is stored and in what shows its answer.

        Return whether there was such a question. Raises, and leaves all as it is, what a new one would raise.
        """
        async with self._queues.entrance(channel_id):
            asked = await self._conversations.find_by_discord_id(from_id)
            if asked is not None:
                await self._check(asked.conversation_id, content.strip())
            moves = asked is not None and await self._conversations.turns.move_question(
                from_id, to_id, author_name, content.strip()
            )
            if moves:
                self._queues.reread(channel_id)
                self._on_removed()
                for job in self._queues.unended(channel_id):
                    job.view.moved(from_id, to_id)
        return moves

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
