"""What people do with a conversation besides asking: stop what runs, take the last turn back, look at it.

Knows nothing of Discord; who may do it is asked of the caller, with the person who had asked.
"""

from __future__ import annotations

from collections.abc import Callable

from bot.conversation.jobs import StopReason
from bot.conversation.queues import AnswerQueues
from bot.errors import NotAllowedError, NothingHereError
from bot.language.phrases import phrase
from storage.conversations import ConversationRef, Conversations
from storage.errors import AnswerPendingError
from storage.turns import NewestTurn

MaySteer = Callable[[int | None], bool]
"""Tells whether the person who acts may steer the answer to this person."""


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
