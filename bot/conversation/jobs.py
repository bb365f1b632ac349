"""One answer in the making: what belongs to it, how it may end, and what shows it.

Knows nothing of how an answer is made, stored or queued.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import Protocol

from bot.servers.notices import Origin
from engine.types import Generation
from storage.conversations import ConversationRef, MessageState, Quote

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


@dataclass(slots=True, eq=False)
class Job:
    """All that belongs to one answer in the making."""

    answer_id: int
    conversation_id: int
    asker_id: int | None
    view: AnswerView
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
    is_again: bool = False
    num_questions: int = 1
    text: str = ""
    stop_reason: StopReason | None = None
    is_withdrawn: bool = False
    """The question is about to be forgotten, for nobody answers it any more."""
    generation: Generation | None = None
    is_stale: bool = False
    """The history has changed since it was read, and nothing of the answer was shown yet: begin anew."""
    is_outdated: bool = False
    view_from: int | None = None
    """The first stored message that the model sees, where older ones were left out."""
    loses_sight: bool = False
    """This is the first answer for which they were."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the history is read, and while it is changed."""

    @property
    def whole_text(self) -> str:
        """The answer so far, with what was there of it before."""
        return self.begun + self.text

    def takes(self, author_id: int) -> bool:
        """Tell whether one more message of `author_id` may join the question: nothing was said yet."""
        is_fresh = not self.is_again and not self.overrides and self.num_questions < MAX_BURST
        return is_fresh and self.asker_id == author_id and self.stop_reason is None and not self.text.strip()

    def begin_anew(self) -> None:
        """Read the history again, since it changed. Call while holding `changing`."""
        self.is_stale = True
        if self.generation is not None:
            self.generation.cancel()

    def stop(self, reason: StopReason) -> None:
        """End the answer as soon as possible; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
        if self.generation is not None:
            self.generation.cancel()


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
