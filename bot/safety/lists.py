"""A server's lists of words and patterns over one text.

Owns that looking never holds the event loop. Knows nothing of servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bot.safety.patterns import Finding, search
from bot.safety.words import WordList


class TextLists:
    """What one list of words and one list of patterns find."""

    def __init__(self, words: Sequence[str], patterns: Sequence[str]) -> None:
        self._words = tuple(words)
        self._patterns = tuple(patterns)

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be found."""
        return not self._words and not self._patterns

    async def look(self, text: str) -> Finding:
        """Return what the lists say of `text`."""
        if self.is_empty or not text:
            return Finding.CLEAN
        return await asyncio.to_thread(self._look, text)

    def _look(self, text: str) -> Finding:
        if WordList(self._words).is_in(text):
            return Finding.FORBIDDEN
        return search(self._patterns, text)
