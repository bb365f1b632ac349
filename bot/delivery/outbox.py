"""What the delivery of an answer needs of Discord, without Discord.

    OutboxError
    ├── OutboxGoneError          the message or its channel was deleted
    ├── OutboxForbiddenError     we may not read or write there now
    │   └── OutboxClosedError        the thread is archived or locked: somebody may open it soon
    ├── OutboxRefusedError       this content is not taken, however often it comes
    └── OutboxRetryError         too fast, or Discord or the network has a fault: later again

Knows nothing of answers or of how their parts are made.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol


class OutboxError(Exception):
    """Base of what an outbox raises on purpose."""


class OutboxGoneError(OutboxError):
    """The message or its channel was deleted."""


class OutboxForbiddenError(OutboxError):
    """We may not read or write there now; that may change."""


class OutboxClosedError(OutboxForbiddenError):
    """The thread is archived or locked, and not for us to open."""


class OutboxRefusedError(OutboxError):
    """This content is not taken, however often it comes."""


class OutboxRetryError(OutboxError):
    """It did not work now, but may later: after `retry_after` seconds where that is known."""

    def __init__(self, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__("Discord cannot take the message right now.")


class Buttons(Enum):
    """The buttons below a message."""

    NONE = auto()
    STOP = auto()
    REGENERATE = auto()
    CONTINUE = auto()
    """The answer was cut short: it can be made again, or gone on with."""
    REDO = auto()
    """The question was edited: the answer can be made again for it."""


class Outbox(Protocol):
    """The messages of one answer. Calls come one at a time and may be cancelled.

    Every method raises `OutboxError`s only. None of them may ping anybody.
    """

    async def send(self, content: str, *, buttons: Buttons, attachment: str = "") -> int:
        """Send one more message, with a text file unless `attachment` is empty, and return its Discord id.

        After an `OutboxRetryError`, or when cancelled, the same content comes again: keep one nonce until
        a send has succeeded, so that a message that did arrive is not sent twice.
        """

    async def edit(self, discord_id: int, content: str, *, buttons: Buttons, attachment: str = "") -> None:
        """Replace a message's content, buttons and text file."""

    async def delete(self, discord_id: int) -> None:
        """Delete a message."""
