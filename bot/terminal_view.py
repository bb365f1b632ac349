"""Shows one answer in the terminal as it grows, and nothing that could command the terminal.

Knows nothing of commands and of reading lines.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Sequence

from rich.console import Console

from bot.conversation.jobs import Ending


class TerminalView:
    """Shows one answer as it grows. Satisfies `bot.conversation.jobs.AnswerView`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ""
        self.answer_id: int | None = None
        self.ended = asyncio.Event()

    @property
    def part_ids(self) -> Sequence[int]:
        return ()

    def opened(self, answer_id: int, parts: Sequence[int]) -> None:  # noqa: ARG002 - no messages to edit here
        self.answer_id = answer_id

    def waiting(self, place: int, *, for_others: bool) -> None:
        """Nobody else asks here."""

    def working(self) -> None:
        """The answer is about to appear."""

    def followed(self) -> None:
        """Nobody else asks here."""

    def update(self, text: str) -> None:
        """Write what is new; white space at the end waits until something follows it."""
        visible = without_controls(text.strip())
        if visible.startswith(self._shown):
            write(self._console, visible[len(self._shown) :])
            self._shown = visible

    async def finish(self, ending: Ending) -> None:
        self.update(ending.text)
        if self._shown:
            write(self._console, "\n")
        if ending.note:
            self._console.print(
                f"({ending.note})", style="dim", markup=False, highlight=False, soft_wrap=True
            )
        self.ended.set()

    @property
    def is_lost(self) -> bool:
        return False


def without_controls(text: str) -> str:
    """Return `text` without the characters that could command a terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cs"})


def write(console: Console, text: str) -> None:
    """Write `text` as it is, with no wrapping or markup, and show it at once."""
    console.file.write(text)
    console.file.flush()
