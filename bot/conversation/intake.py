"""Takes questions in: what can be answered at all, stored as a turn of its own or as more of the last one.

Call it inside the conversation's entrance. Knows nothing of queues and of how an answer is made.
"""

from __future__ import annotations

import asyncio

from bot.conversation.dialog import with_quote
from bot.conversation.jobs import Job, Question
from bot.conversation.preferences import Preferences
from bot.conversation.prompting import check_question
from bot.conversation.views import AnswerView, HeldView
from bot.errors import EmptyQuestionError
from engine.errors import EngineUnavailableError
from engine.types import Health, TextEngine
from engine.waiting.room import Ticket
from storage.conversations import Conversations
from storage.errors import NotFoundError
from storage.turns import NewQuestion


class Intake:
    """Checks and stores questions."""

    def __init__(self, engine: TextEngine, conversations: Conversations, preferences: Preferences) -> None:
        self._engine = engine
        self._conversations = conversations
        self._preferences = preferences

    def check_engine(self) -> None:
        """Raise `EngineUnavailableError` where nothing can be answered."""
        if self._engine.health is not Health.READY:
            raise EngineUnavailableError("The engine is not ready.")

    async def check_prompt(self, conversation_id: int, content: str) -> None:
        """Refuse what no history could make answerable."""
        parameters = await self._preferences.parameters(conversation_id)
        await asyncio.to_thread(
            check_question,
            self._engine,
            content,
            self._preferences.system_prompt_of(parameters),
            parameters.prompt_budget(self._engine.info.context_length),
        )

    async def check(self, question: Question) -> tuple[str, int]:
        """Return what is asked and the conversation it is asked in. Raises what makes it unanswerable."""
        content = question.content.strip()
        if not content:
            raise EmptyQuestionError
        self.check_engine()
        conversation_id = await self._conversations.open(question.conversation)
        await self.check_prompt(conversation_id, with_quote(content, question.quote))
        return content, conversation_id

    async def ask_on(self, job: Job, question: Question, content: str) -> bool:
        """Let the answer to what the same person just said answer this too, if it has not begun."""
        if question.overrides or not job.takes(question.author_id):
            return False
        async with job.changing:
            is_known = await self._conversations.find_by_discord_id(question.discord_id) is not None
            if is_known or not job.takes(question.author_id):
                return False
            job.begin_anew()
            try:
                await self._conversations.turns.ask_on(job.answer_id, _stored(question, content))
            except NotFoundError:
                return False
            job.num_questions += 1
            job.notes += tuple(note for note in question.notes if note not in job.notes)
        return True

    async def begin(
        self, conversation_id: int, question: Question, content: str, view: AnswerView, ticket: Ticket
    ) -> Job:
        """Store a question and its answer to be. Nothing is stored if this raises."""
        settings_of = question.settings_of
        settings_id = 0 if settings_of is None else await self._conversations.find(settings_of) or 0
        if question.starter_id is not None:
            await self._conversations.turns.link(conversation_id, question.starter_id)
        turn = await self._conversations.begin_turn(
            conversation_id,
            discord_id=question.discord_id,
            author_id=question.author_id,
            author_name=question.author_name,
            content=content,
            created_at=question.created_at,
            quote=question.quote,
        )
        return Job(
            turn.answer.id,
            conversation_id,
            question.author_id,
            HeldView(view),
            ticket,
            question.asked_from,
            settings_id=settings_id,
            stands_alone=settings_of is not None,
            overrides=question.overrides,
            notes=question.notes,
        )


def _stored(question: Question, content: str) -> NewQuestion:
    return NewQuestion(
        question.discord_id,
        question.author_id,
        question.author_name,
        content,
        question.created_at,
        question.quote,
    )
