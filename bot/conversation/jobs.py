"""One answer in the making: what belongs to it, how it may end, and what shows it.

Knows nothing of how an answer is made, stored or queued.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Any, Protocol, TypeVar

from bot.conversation.said import Said, take_apart, without_name
from bot.origin import Origin
from engine.types import Generation, Reasoning
from engine.waiting.room import Ticket
from storage.conversations import ConversationRef, MessageState, Quote

Result = TypeVar("Result")

MAX_BURST = 8
"""Messages in a row that are answered as one question."""


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
class Ending:
    """How an answer ended: what is shown below it, and whether it can be asked for again.

    `answer_id` and `text` are of the answer that stands now: after a regeneration that broke off with nothing
    to show, that is the one it was to replace. `note` is a phrase, to be rendered where it is shown.
    """

    answer_id: int
    state: MessageState
    text: str
    note: str | None = None
    can_regenerate: bool = True
    can_continue: bool = False
    is_outdated: bool = False
    """The question was edited while it was being answered."""
    thought: str = ""
    """What the model thought first, for views that show it; it is stored nowhere."""


class AnswerView(Protocol):
    """Shows one answer to people. No method raises; only `finish` takes time."""

    def opened(self, answer_id: int, parts: Sequence[int]) -> None:
        """Learn which answer is shown, and the Discord messages that show it already."""

    def waiting(self, place: int, *, for_others: bool) -> None:
        """Show that the question waits; the next one to be answered has place 1.

        The place is in the queue of the conversation, or `for_others` among the conversations that wait.
        """

    def working(self) -> None:
        """Show that the answer is being made."""

    def followed(self) -> None:
        """Learn that another answer waits behind this one, which is to be shown below it."""

    def thinking(self, seconds: int) -> None:
        """Show that the model has been thinking for so long, and says nothing yet."""

    def update(self, text: str) -> None:
        """Show the whole text so far."""

    async def finish(self, ending: Ending) -> None:
        """Show the ending. Called exactly once."""

    @property
    def is_lost(self) -> bool:
        """Whether the answer can no longer be shown."""

    @property
    def part_ids(self) -> Sequence[int]:
        """The Discord messages that show the answer."""

    @property
    def shows_thoughts(self) -> bool:
        """Whether what the model thought is shown at the end."""


class HeldView:
    """A view that can be held: then it shows nothing, and on release the newest of what it was told.

    It is held while answers before it are still to be shown, so that none is shown above another's end.
    """

    def __init__(self, view: AnswerView) -> None:
        self.has_text = False
        """Whether text of the answer was shown."""
        self._view = view
        self._held: dict[str, Callable[[], None]] | None = None
        self._state: tuple[int, bool] | None = None
        """The place that was told, with whom it is among; place 0 while the answer is being made."""

    @property
    def is_lost(self) -> bool:
        """Whether the answer can no longer be shown."""
        return self._view.is_lost

    @property
    def part_ids(self) -> Sequence[int]:
        """The Discord messages that show the answer."""
        return self._view.part_ids

    @property
    def shows_thoughts(self) -> bool:
        """Whether what the model thought is shown at the end."""
        return self._view.shows_thoughts

    @property
    def is_told(self) -> bool:
        """Whether it was said that the question waits, or is being answered."""
        return self._state is not None

    def opened(self, answer_id: int, parts: Sequence[int]) -> None:
        """See `AnswerView.opened`."""
        self._view.opened(answer_id, parts)

    def hold(self) -> None:
        """Show nothing from now on."""
        self._held = {} if self._held is None else self._held

    def release(self) -> None:
        """Show what was held."""
        held, self._held = self._held or {}, None
        for show in held.values():
            show()

    def waiting(self, place: int, *, for_others: bool) -> None:
        """See `AnswerView.waiting`. The same place is told once."""
        if self._state != (place, for_others):
            self._state = (place, for_others)
            self._do("state", functools.partial(self._view.waiting, place, for_others=for_others))

    def working(self) -> None:
        """See `AnswerView.working`. Told once, until the answer waits again."""
        if self._state != (0, False):
            self._state = (0, False)
            self._do("state", self._view.working)

    def followed(self) -> None:
        """See `AnswerView.followed`."""
        self._do("followed", self._view.followed)

    def thinking(self, seconds: int) -> None:
        """See `AnswerView.thinking`."""
        self._do("text", functools.partial(self._view.thinking, seconds))

    def update(self, text: str) -> None:
        """See `AnswerView.update`."""
        self._do("text", functools.partial(self._show_text, text))

    async def finish(self, ending: Ending) -> None:
        """See `AnswerView.finish`. What is held is shown no more: the ending is newer."""
        self._held = None
        await self._view.finish(ending)

    def _show_text(self, text: str) -> None:
        self.has_text = True
        self._view.update(text)

    def _do(self, kind: str, show: Callable[[], None]) -> None:
        if self._held is None:
            show()
        else:
            self._held.pop(kind, None)
            self._held[kind] = show


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
    num_questions: int = 1
    text: str = ""
    stop_reason: StopReason | None = None
    is_withdrawn: bool = False
    """The question is about to be forgotten, for nobody answers it any more."""
    is_made: bool = False
    """The model is done, whatever came of it."""
    generation: Generation | None = None
    work: asyncio.Task[Any] | None = None
    """What comes before the generation: it is given up when the job changes."""
    is_stale: bool = False
    """The history has changed since it was read, and nothing of the answer was shown yet: begin anew."""
    is_outdated: bool = False
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


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asked, and where."""

    conversation: ConversationRef
    discord_id: int
    author_id: int
    author_name: str
    content: str
    created_at: datetime
    quote: Quote | None = None
    """The message that the question replies to or is about."""
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
