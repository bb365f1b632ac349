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
        line_start = r"^[ \t]*+" if self.marker[0] == "~" else ""
        return _pattern(line_start + self._closing)

    @property
    def closing_at_start(self) -> re.Pattern[str]:
        """Matches the marker that ends the block, where a part begins and so does its first line."""
        return _pattern(r"[ \t]*+" + self._closing)

    @property
    def _closing(self) -> str:
        run = rf"{{{len(self.marker)},{MAX_MARKER}}}"
        return rf"~{run}[ \t\r]*+$" if self.marker[0] == "~" else rf"(?<!`)`{run}(?!`)"


@cache
def _pattern(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.MULTILINE)
