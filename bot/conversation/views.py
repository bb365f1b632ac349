"""What shows an answer to people, as the making of it sees that, and how an answer ends.

Knows nothing of how an answer is made, stored or queued.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from storage.conversations import MessageState


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
    waiter_id: int | None = None
    """Who waited for it to the end; None where somebody ended it."""


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

    def moved(self, from_id: int, to_id: int) -> None:
        """Learn that another Discord message has taken the place of one that was asked."""

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

    def moved(self, from_id: int, to_id: int) -> None:
        """See `AnswerView.moved`."""
        self._view.moved(from_id, to_id)

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
