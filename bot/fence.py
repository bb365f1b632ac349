"""A block of code that is open at some place of a text, and how it is closed and opened anew.

Discord ends a block at the next run of at least as many backticks, wherever on a line it stands; `~~~`
follows CommonMark. Knows nothing of how a block is found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

MAX_MARKER = 8
"""Longer runs of backticks or tildes are not fence markers."""


@dataclass(frozen=True, slots=True)
class Fence:
    """An open code block: its marker and the language that a reopened block names again."""

    marker: str
    language: str = ""

    @property
    def head(self) -> str:
        """What opens the block anew at the start of a part."""
        return f"{self.marker}{self.language}\n"

    @property
    def tail(self) -> str:
        """What closes the block at the end of a part."""
        return f"\n{self.marker}"

    @property
    def closing(self) -> re.Pattern[str]:
        """Finds the marker that ends the block."""
        return _closing(self.marker[0], len(self.marker))


@cache
def _closing(char: str, length: int) -> re.Pattern[str]:
    if char == "~":
        return re.compile(rf"^[ \t]*~{{{length},{MAX_MARKER}}}[ \t\r]*$", re.MULTILINE)
    return re.compile(rf"(?<!`)`{{{length},{MAX_MARKER}}}(?!`)")
