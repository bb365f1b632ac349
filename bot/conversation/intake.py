"""Takes questions in: each in the order in which it came, checked, and stored alone or with the last one.

What takes its time, as a file does, is fetched while others come. Nothing is kept of a conversation where
nobody stands in line. Knows nothing of Discord, of queues and of how an answer is made.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bot.conversation.dialog import with_quotes
from bot.conversation.jobs import Job, Question
from bot.conversation.preferences import Preferences
from bot.conversation.prompting import Prompts, check_question, num_fitting
from bot.conversation.views import AnswerView, HeldView
from bot.errors import EmptyQuestionError, QuestionGoneError
from engine.errors import EngineUnavailableError
from engine.types import Health, TextEngine
from engine.waiting.room import Ticket
from storage.conversations import ConversationRef, Conversations, Quote
from storage.errors import NotFoundError
from storage.turns import NewQuestion

MAX_GONE = 2000
"""Deleted messages that are known."""


class Intake:
    """Checks and stores questions."""

    def __init__(self, engine: TextEngine, conversations: Conversations, preferences: Preferences) -> None:
        self._engine = engine
        self._conversations = conversations
        self._preferences = preferences

    def check_engine(self) -> None:
        """Raise `EngineUnavailableError` where nothing can be answered."""
        if self._engine.health not in (Health.READY, Health.AWAY):
            raise EngineUnavailableError("The engine is not ready.")

    async def check_prompt(self, conversation_id: int, content: str) -> None:
        """Refuse what no history could make answerable."""
        parameters = await self._preferences.parameters(conversation_id)
        await asyncio.to_thread(
            check_question,
            Prompts(self._engine, parameters.thinks),
            content,
            await self._preferences.told_in(conversation_id, parameters),
            parameters.prompt_budget(self._engine.info.context_length),
        )

    async def fitting(self, ref: ConversationRef, text: str, share: float) -> int:
        """Return how many characters of a text fit into a share of what a question here may take."""
        conversation_id = await self._conversations.open(ref)
        parameters = await self._preferences.parameters(conversation_id)
        system_prompt = await self._preferences.told_in(conversation_id, parameters)
        budget = parameters.prompt_budget(self._engine.info.context_length)
        return await asyncio.to_thread(num_fitting, self._engine, text, system_prompt, budget, share)

    async def check(self, question: Question) -> tuple[str, int]:
        """Return what is asked and the conversation it is asked in. Raises what makes it unanswerable."""
        content = question.content.strip()
        if not content:
            raise EmptyQuestionError
        self.check_engine()
        conversation_id = await self._conversations.open(question.conversation)
        await self.check_prompt(conversation_id, with_quotes(content, question.quotes))
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
            quotes=question.quotes,
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
        question.quotes,
    )


class Arrivals:
    """The lines of all conversations."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[Arrival]] = {}
        self._gone: OrderedDict[int, None] = OrderedDict()
        """Messages that were deleted of late: what is on its way may have read them before."""

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
        if discord_id is not None:
            self._gone[discord_id] = None
            if len(self._gone) > MAX_GONE:
                self._gone.popitem(last=False)
        for channel_id, line in list(self._lines.items()):
            for arrival in line:
                if discord_id == arrival.discord_id or author_id == arrival.author_id:
                    arrival.is_withdrawn = True
                    arrival.is_first.set()
            self._move_up(channel_id)

    def gone_of(self, question: Question) -> list[Quote]:
        """Return what a question quotes of messages that were deleted of late."""
        return [quote for quote in question.quotes if quote.discord_id in self._gone]

    def _move_up(self, channel_id: int) -> None:
        line = self._lines[channel_id]
        first = next((arrival for arrival in line if not arrival.is_withdrawn), None)
        if first is not None:
            first.is_first.set()
        if not line:
            del self._lines[channel_id]


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
