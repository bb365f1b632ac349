"""The conversation service: questions in, answers stored and shown; the same for Discord and the terminal.

Owns what may enter and what must end, and stores before it queues. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType

from bot.conversation.answering import Answered, Answering
from bot.conversation.jobs import AnswerView, Job, StopReason
from bot.conversation.parameters import ChatParameters
from bot.conversation.preferences import Preferences
from bot.conversation.prompting import check_question
from bot.conversation.queues import AnswerQueues
from bot.conversation.screening import Screening
from bot.errors import EmptyQuestionError
from bot.servers.gate import Gate
from bot.servers.origin import Origin
from engine.errors import EngineUnavailableError
from engine.types import Health, TextEngine
from storage.conversations import ConversationRef, Conversations, InterruptedAnswer
from storage.resets import Reset
from storage.settings import SettingsStore

UNDO_TIME = timedelta(minutes=10)
"""How long a reset can be undone."""
MAX_WAITING = 8
"""Questions that may wait in one conversation besides the one being answered."""


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asked, and where."""

    conversation: ConversationRef
    discord_id: int
    author_id: int
    author_name: str
    content: str
    created_at: datetime
    origin: Origin | None = None
    """What a server's rules look at; None is a person without roles, directly in this conversation."""


class ChatService:
    """Answers questions, each conversation's in order. An async context manager; closing twice is fine."""

    def __init__(
        self,
        engine: TextEngine,
        conversations: Conversations,
        settings: SettingsStore,
        defaults: ChatParameters,
        *,
        gate: Gate | None = None,
        screening: Screening | None = None,
        on_answered: Answered | None = None,
        shutdown_grace_s: float = 0.0,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`shutdown_grace_s`: how long `close` lets answers in the making come to their end."""
        self.engine = engine
        self.conversations = conversations
        self.preferences = Preferences(engine, conversations, settings, defaults)
        self._gate = gate
        answering = Answering(engine, conversations, self.preferences, screening, on_answered)
        self._shutdown_grace_s = shutdown_grace_s
        self._queues = AnswerQueues(answering.run, max_waiting=max_waiting)

    async def __aenter__(self) -> ChatService:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ask(self, question: Question, view: AnswerView) -> int:
        """Store the question, queue its answer and return the answer's id.

        Raises, before anything is stored, what `bot.errors.sentence_for` has a sentence for;
        `DuplicateMessageError` for a question that is known already.
        """
        channel_id = question.conversation.channel_id
        if self._gate is not None:
            await self._gate.admit(_origin_of(question), question.content)
        async with self._queues.place(channel_id):
            job = await self._accept(question, view)
            self._queues.add(channel_id, job)
        return job.answer_id

    async def regenerate(
        self, channel_id: int, answer_id: int, view: AnswerView, origin: Origin | None = None
    ) -> int:
        """Queue another answer to the question of the newest answer and return the new one's id.

        `origin` is whoever asks for it. Raises a `RefusalError` where they may not ask here now, and
        `NotFoundError` for an answer that is not the newest, gone or not ended yet.
        """
        if self._gate is not None and origin is not None:
            await self._gate.admit(origin, "")
        async with self._queues.place(channel_id):
            self._check_engine()
            parts = await self.conversations.parts(answer_id)
            asker_id = await self.asker_of(answer_id)
            answer = await self.conversations.begin_regeneration(answer_id)
            view.opened(answer.id, parts)
            job = Job(answer.id, answer.conversation_id, asker_id, view, origin)
            self._queues.add(channel_id, job)
        return answer.id

    async def is_shown_by(self, answer_id: int, discord_id: int) -> bool:
        """Tell whether a Discord message shows part of an answer."""
        job = self._queues.find(answer_id)
        if job is not None and discord_id in job.view.part_ids:
            return True
        return discord_id in await self.conversations.parts(answer_id)

    async def asker_of(self, answer_id: int) -> int | None:
        """Return who asked the question that `answer_id` answers, or None if that is not known."""
        job = self._queues.find(answer_id)
        if job is not None:
            return job.asker_id
        question = await self.conversations.history_before(answer_id, limit=1)
        return question[-1].author_id if question else None

    def stop(self, answer_id: int, reason: StopReason = StopReason.USER) -> bool:
        """End a running or waiting answer; return whether there was one."""
        return self._queues.stop(answer_id, reason)

    def stop_person(self, user_id: int) -> int:
        """End every answer to a person who does not want to be answered; return how many there were."""
        return self._queues.stop_asker(user_id, StopReason.FORGOTTEN)

    async def reset(self, ref: ConversationRef, *, by_user_id: int, at: datetime) -> Reset:
        """Stop everything in a conversation and put all that was said aside."""
        async with self._queues.entrance(ref.channel_id):
            self._queues.stop_conversation(ref.channel_id, StopReason.RESET)
            conversation_id = await self.conversations.open(ref)
            return await self.conversations.reset(conversation_id, by_user_id=by_user_id, at=at)

    async def undo_reset(self, reset: Reset, *, by_user_id: int, at: datetime) -> Reset:
        """Bring back what a reset put aside. Raises `NotFoundError` after `UNDO_TIME` or a second time."""
        async with self._queues.entrance(reset.channel_id):
            return await self.conversations.undo_reset(
                reset.id, by_user_id=by_user_id, at=at, not_before=at - UNDO_TIME
            )

    async def message_deleted(self, channel_id: int, discord_id: int) -> None:
        """Forget a deleted question with its answers; stop an answer that was deleted as it was written."""
        async with self._queues.entrance(channel_id):
            deleted = await self.conversations.delete_question(discord_id)
            for answer_id in () if deleted is None else deleted.answer_ids:
                self._queues.stop(answer_id, StopReason.QUESTION_DELETED)
            if deleted is None:
                message = await self.conversations.find_by_discord_id(discord_id)
                if message is not None:
                    self._queues.stop(message.id, StopReason.NOT_SHOWABLE)
                    await self.conversations.detach_part(discord_id)

    async def interrupt_pending(self) -> list[InterruptedAnswer]:
        """Mark what an earlier run left unfinished. Call once, before the first question."""
        return await self.conversations.interrupt_pending()

    async def close(self) -> None:
        """Refuse further questions, and let every answer end or, after the grace, stop and mark it."""
        await self._queues.close(grace_s=self._shutdown_grace_s)

    @property
    def num_running(self) -> int:
        """Answers being made."""
        return self._queues.num_running

    @property
    def num_waiting(self) -> int:
        """Questions that wait for their turn."""
        return self._queues.num_waiting

    async def _accept(self, question: Question, view: AnswerView) -> Job:
        """Check and store a question."""
        content = question.content.strip()
        if not content:
            raise EmptyQuestionError
        self._check_engine()
        conversation_id = await self.conversations.open(question.conversation)
        await self._check_prompt(conversation_id, content)
        turn = await self.conversations.begin_turn(
            conversation_id,
            discord_id=question.discord_id,
            author_id=question.author_id,
            author_name=question.author_name,
            content=content,
            created_at=question.created_at,
        )
        view.opened(turn.answer.id, ())
        return Job(turn.answer.id, conversation_id, question.author_id, view, _origin_of(question))

    async def _check_prompt(self, conversation_id: int, content: str) -> None:
        """Refuse what no history could make answerable."""
        parameters = await self.preferences.parameters(conversation_id)
        await asyncio.to_thread(
            check_question,
            self.engine,
            content,
            self.preferences.system_prompt_of(parameters),
            parameters.prompt_budget(self.engine.info.context_length),
        )

    def _check_engine(self) -> None:
        if self.engine.health is not Health.READY:
            raise EngineUnavailableError("The engine is not ready.")


def _origin_of(question: Question) -> Origin:
    ref = question.conversation
    return question.origin or Origin(question.author_id, ref.channel_id, ref.guild_id)
