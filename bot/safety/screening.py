"""What stands between a model's answer and its readers, as the making of an answer sees it.

The rules are not here: a `Screening` knows them. Without one everything may be shown.
"""

from __future__ import annotations

from typing import Protocol

from bot.errors import ChatError
from bot.origin import Origin


class WithheldError(ChatError):
    """Nothing of an answer may be shown. The text is the sentence that is shown in its place."""


class Screen(Protocol):
    """Decides what of one answer is shown and stored."""

    @property
    def label(self) -> str | None:
        """What is said below the answer, whatever it says."""

    async def check_question(self, text: str) -> None:
        """Raise `WithheldError` unless `text` may be answered. Called anew where the question changed."""

    async def shown(self, text: str) -> str:
        """Return what may be shown of the text so far. Raises `WithheldError`."""

    async def finished(self, text: str) -> str:
        """Return what may be shown and stored of the whole text. Raises `WithheldError`."""


class Screening(Protocol):
    """Gives each answer its screen."""

    async def open(self, conversation_id: int, asker_id: int | None, origin: Origin | None) -> Screen:
        """Return the screen for an answer in a conversation to a person. Raises `StorageError`."""


class OpenScreen:
    """Shows everything."""

    label: str | None = None

    async def check_question(self, text: str) -> None:
        """Let it be answered."""

    async def shown(self, text: str) -> str:
        """Return it all."""
        return text

    async def finished(self, text: str) -> str:
        """Return it all."""
        return text


class NoScreening:
    """Where nothing needs to be screened: in the terminal."""

    async def open(self, conversation_id: int, asker_id: int | None, origin: Origin | None) -> Screen:  # noqa: ARG002 - all answers are treated alike
        """Return a screen that shows everything."""
        return OpenScreen()
