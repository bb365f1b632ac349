"""Who asks and where, and what moderators are told of it in their log: the values, and a notice's way there.

All of it ids and numbers, never what anybody wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto


class NoticeKind(Enum):
    """What happened."""

    RESET = auto()
    RESET_UNDONE = auto()
    BLOCKED = auto()
    UNBLOCKED = auto()
    CONFIG_CHANGED = auto()
    QUESTION_REFUSED = auto()
    """By the server's lists."""
    QUESTION_UNCHECKED = auto()
    """The lists took too long."""
    QUESTION_UNSAFE = auto()
    """By the moderation model."""
    ANSWER_WITHHELD = auto()
    REPORTED = auto()


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened in a server.

    by_user_id: who did it. about_user_id: to whom, or who had asked. num: how many messages. detail: the name
    of a setting or the link to a message, as `kind` needs it.
    """

    guild_id: int
    kind: NoticeKind
    by_user_id: int | None = None
    about_user_id: int | None = None
    channel_id: int | None = None
    num: int = 0
    detail: str = ""
    reset_id: int | None = None


class Notices:
    """Passes notices on to the one who listens, if anybody does."""

    def __init__(self) -> None:
        self._listener: Callable[[Notice], None] | None = None

    def listen(self, listener: Callable[[Notice], None]) -> None:
        """Send every notice from now on to `listener`, which must neither block nor raise."""
        self._listener = listener

    def post(self, notice: Notice) -> None:
        """Pass a notice on."""
        if self._listener is not None:
            self._listener(notice)
