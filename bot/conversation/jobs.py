"""Questions and answers in the making: what belongs to each, how it may end, and the line they stand in.

Knows nothing of other conversations and of how an answer is made, stored or shown.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Any, TypeVar

from bot.conversation.dialog import Said, take_apart, without_name
from bot.conversation.views import Ending, HeldView
from bot.origin import Origin
from engine.tracing import current_trace
from engine.types import FinishReason, Generation, Reasoning
from engine.waiting.room import Ticket
from storage.conversations import ConversationRef, Quote

Result = TypeVar("Result")
MAX_BURST = 8
"""Messages in a row that are answered as one question."""
NUM_TOLD = 3
"""How many of those who wait are told their new place when it changes."""


class StopReason(Enum):
    """Why an answer ends before the model is done."""

    USER = auto()
    QUESTION_DELETED = auto()
    ANSWER_DELETED = auto()
    RESET = auto()
    OUT_OF_TIME = auto()
    """Where it is shown, Discord lets us write for a quarter of an hour only."""
    FORGOTTEN = auto()
    """Whoever asked wants to be forgotten, or not to be answered."""
    BLOCKED = auto()
    """Moderators decided that whoever asked is not answered here."""
    NOT_SHOWABLE = auto()
    """Its message was deleted, or we may not write there any more."""
    SHUTDOWN = auto()


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asked, and where."""

    conversation: ConversationRef
    discord_id: int
    author_id: int
    author_name: str
    content: str
    created_at: datetime
    quotes: tuple[Quote, ...] = ()
    """What the question refers to: the message that it replies to or is about, and others."""
    starter_id: int | None = None
    """The Discord message that the thread was started from, for a question in a thread."""
    settings_of: ConversationRef | None = None
    """The conversation whose settings hold, if not this one's."""
    overrides: Mapping[str, object] = field(default_factory=dict)
    """Parameters for this answer alone."""
    notes: tuple[str, ...] = ()
    """Phrases that are said below the answer."""
    origin: Origin | None = None
    """What a server's rules look at; None is a person without roles, directly in this conversation."""

    @property
    def asked_from(self) -> Origin:
        """Who asks, and where."""
        ref = self.conversation
        return self.origin or Origin(self.author_id, ref.channel_id, ref.guild_id)


def session_of(conversation_id: int) -> str:
    """Return what engines know a conversation by, so that its turns come to where their KV is."""
    return f"conversation {conversation_id}"


@dataclass(slots=True, eq=False)
class Job:
    """All that belongs to one answer in the making."""

    answer_id: int
    conversation_id: int
    asker_id: int | None
    view: HeldView
    ticket: Ticket
    """For the engine's waiting room."""
    origin: Origin | None = None
    settings_id: int = 0
    """The conversation whose settings hold; 0 for its own."""
    stands_alone: bool = False
    """Nothing comes after it in its conversation."""
    overrides: Mapping[str, object] = field(default_factory=dict)
    """Parameters for this answer alone."""
    notes: tuple[str, ...] = ()
    begun: str = ""
    """The text of an answer that is gone on with."""
    reasoning: Reasoning | None = None
    """How the model marks what it thinks."""
    names: tuple[str, ...] = ()
    """The bot's own, and those of who asked: an answer does not begin with them."""
    is_again: bool = False
    is_seeded: bool = False
    """The same question is to get the same answer again."""
    num_questions: int = 1
    text: str = ""
    stop_reason: StopReason | None = None
    is_withdrawn: bool = False
    """The question is about to be forgotten, for nobody answers it any more."""
    is_made: bool = False
    """The model is done, whatever came of it."""
    generation: Generation | None = None
    trace: str = field(default_factory=current_trace)
    """The question's id in the log."""
    work: asyncio.Task[Any] | None = None
    """What comes before the generation: it is given up when the job changes."""
    is_stale: bool = False
    """The history has changed since it was read, and nothing of the answer was shown yet: begin anew."""
    is_outdated: bool = False
    heard_ids: frozenset[int] = frozenset()
    """The Discord messages that the model is told of beside the conversation."""
    view_from: int | None = None
    """The first stored message that the model sees, where older ones were left out."""
    loses_sight: bool = False
    """This is the first answer for which they were."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the history is read, and while it is changed; never for longer than the store takes."""

    def said(self, output: str, *, final: bool) -> Said:
        """Take the model's output apart, and put what it goes on with before its answer."""
        said = take_apart(output, self.reasoning, final=final)
        if self.begun:
            return dataclasses.replace(said, answer=self.begun + said.answer)
        return dataclasses.replace(said, answer=without_name(said.answer, self.names, final=final))

    def takes(self, author_id: int) -> bool:
        """Tell whether one more message of `author_id` may join the question: nothing was said yet."""
        is_fresh = not self.is_again and not self.overrides and self.num_questions < MAX_BURST
        return is_fresh and self.asker_id == author_id and self.stop_reason is None and not self.has_begun

    @property
    def has_begun(self) -> bool:
        """Whether something was said, or nothing will be."""
        return self.is_made or bool(self.text.strip())

    @property
    def is_whole(self) -> bool:
        """Whether the model has said all there is: nobody can stop it any more."""
        completion = None if self.generation is None else self.generation.completion
        has_ended = completion is not None and completion.finish_reason is not FinishReason.CANCELLED
        return self.is_made or has_ended

    def begin_anew(self) -> None:
        """Read the history again, since it changed or is about to while `changing` is held."""
        self.is_stale = True
        self._give_up()

    def stop(self, reason: StopReason) -> None:
        """End the answer as soon as possible; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
        self._give_up()

    async def step(self, work: Coroutine[Any, Any, Result]) -> Result | None:
        """Return what slow work brings, None as soon as the job is stopped or begins anew."""
        if self.stop_reason is not None or self.is_stale:
            work.close()
            return None
        self.work = task = asyncio.create_task(work)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            self.work = None
        return None if task.cancelled() else task.result()

    def _give_up(self) -> None:
        if self.generation is not None:
            self.generation.cancel()
        if self.work is not None:
            self.work.cancel()


@dataclass(slots=True, eq=False)
class Lane:
    """One conversation's jobs. `admission` makes the order of arrival the order in storage."""

    channel_id: int
    admission: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_visitors: int = 0
    front: Job | None = None
    """The one that is answered, from its preparation until its answer is stored."""
    waiting: deque[Job] = field(default_factory=deque)
    unshown: dict[Job, Ending] = field(default_factory=dict)
    """Answers that are stored and not yet shown, in order, and how they ended."""

    def jobs(self) -> list[Job]:
        """Return those that have not ended, in order."""
        return ([] if self.front is None else [self.front]) + list(self.waiting)

    @property
    def num_taken(self) -> int:
        """Jobs, answers still to be shown, and visitors who may bring a job."""
        return self.num_visitors + len(self.jobs()) + len(self.unshown)

    def append(self, job: Job) -> None:
        """Let a job wait as the last one."""
        self.waiting.append(job)
        self.hold()

    def hold(self) -> None:
        """Show nothing of what comes after answers that are still to be shown: it would stand above them."""
        for job in self.jobs() if self.unshown else ():
            job.view.hold()

    def shown(self, job: Job) -> None:
        """Note that an answer is shown; after the last one it is the others' turn to be shown."""
        del self.unshown[job]
        for other in () if self.unshown else self.jobs():
            other.view.release()

    def tell_places(self) -> None:
        """Tell those behind the front their places, the next one to be answered has place 1."""
        is_front_waiting = self.front is not None and self.front.ticket.is_in_line
        for place, job in enumerate(self.waiting, start=2 if is_front_waiting else 1):
            if place <= NUM_TOLD or not job.view.is_told:
                job.view.waiting(place, for_others=False)
