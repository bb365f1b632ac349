"""One answer in the making: what belongs to it, how it may end, and what shows it.

Knows nothing of how an answer is made, stored or queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from bot.servers.origin import Origin
from engine.types import Generation
from storage.conversations import MessageState


class StopReason(Enum):
    """Why an answer ends before the model is done."""

    USER = auto()
    QUESTION_DELETED = auto()
    RESET = auto()
    FORGOTTEN = auto()
    """Whoever asked wants to be forgotten, or not to be answered."""
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


class AnswerView(Protocol):
    """Shows one answer to people. No method raises; only `finish` takes time."""

    def opened(self, answer_id: int, parts: Sequence[int]) -> None:
        """Learn which answer is shown, and the Discord messages that show it already."""

    def waiting(self, place: int) -> None:
        """Show that the question waits; the next one to be answered has place 1."""

    def working(self) -> None:
        """Show that the answer is being made."""

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
    text: str = ""
    stop_reason: StopReason | None = None
    generation: Generation | None = None

    def stop(self, reason: StopReason) -> None:
        """End the answer as soon as possible; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
        if self.generation is not None:
            self.generation.cancel()
