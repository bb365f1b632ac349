"""Markdown's tables as Discord can show them: aligned in a block of code, or as a list where too wide.

Pure. Knows nothing of where in a text a table stands. A layout is chosen from the first rows, so that what is
shown of a table stays while it grows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

MAX_WIDTH = 40
"""Columns of a block of code that a phone shows in one line; a wide character takes two."""
_UNESCAPED_PIPE = re.compile(r"(?<!\\)\|")
_MARKS = re.compile(r"(?<![^\s(])(?:\*{1,3}|~~|`+)(?=\S)|(?<=\S)(?:\*{1,3}|~~|`+)(?![^\s).,;:!?])")
"""Around whole words: pieces of a word are not put together."""
_BREAK = re.compile(r"\s*<br\s*/?>\s*", re.IGNORECASE)
_NEEDS_MARKDOWN = re.compile(r"\]\(|://|<[@#:a/t]")
"""Links and emoji, which are nothing in a block of code."""


def cells_of(row: str) -> list[str]:
    """Return the cells of a row, which begins with a pipe."""
    inner = row.strip().removeprefix("|")
    if inner.endswith("|") and not inner.endswith("\\|"):
        inner = inner[:-1]
    return [_BREAK.sub(" ", cell).replace("\\|", "|").strip() for cell in _UNESCAPED_PIPE.split(inner)]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of one table are shown. Without `widths` they are a list."""

    headers: tuple[str, ...]
    is_right: tuple[bool, ...]
    widths: tuple[int, ...] = ()

    @property
    def opening(self) -> str:
        """What comes before the rows, the headers included."""
        if not self.widths:
            return ""
        return f"```\n{self._line(self.headers)}\n"

    @property
    def rule(self) -> str:
        """What stands between headers and rows."""
        return "-+-".join("-" * width for width in self.widths) + "\n" if self.widths else ""

    @property
    def closing(self) -> str:
        """What comes after the rows."""
        return "```\n" if self.widths else ""

    def row(self, cells: Sequence[str]) -> str:
        """Return one row, with the end of its line."""
        return f"{self._line(cells)}\n" if self.widths else self._item(cells)

    def _line(self, cells: Sequence[str]) -> str:
        padded = [*cells, *[""] * (len(self.widths) - len(cells))]
        widths = [*self.widths, *[0] * (len(padded) - len(self.widths))]
        is_right = [*self.is_right, *[False] * len(padded)]
        aligned = (
            _aligned(_plain(cell), width, right)
            for cell, width, right in zip(padded, widths, is_right, strict=False)
        )
        return " | ".join(aligned).rstrip()

    def _item(self, cells: Sequence[str]) -> str:
        """Return a row as an item, its other cells below the first one."""
        headers = [*self.headers, *[""] * (len(cells) - len(self.headers))]
        named = [(header, cell) for header, cell in zip(headers, cells, strict=False) if cell]
        lines = [f"{header}: {cell}" if header else cell for header, cell in named]
        if lines and cells[0] and not re.search(r"[*`]", lines[0]):
            lines[0] = f"**{lines[0]}**"
        return "".join(f"{'  - ' if at else '- '}{line}\n" for at, line in enumerate(lines))


def layout_of(headers: Sequence[str], delimiter: str, rows: Sequence[Sequence[str]]) -> Layout:
    """Choose how a table is shown that begins with these rows."""
    is_right = tuple(mark.endswith(":") and not mark.startswith(":") for mark in cells_of(delimiter))
    lines = [headers, *rows]
    num_columns = max(map(len, lines))
    widths = [
        max((cell_len(_plain(line[at])) for line in lines if at < len(line)), default=0)
        for at in range(num_columns)
    ]
    is_wide = sum(widths) + 3 * (num_columns - 1) > MAX_WIDTH
    has_markdown = any(_NEEDS_MARKDOWN.search(cell) for line in lines for cell in line)
    if rows and (is_wide or has_markdown):
        return Layout(tuple(headers), is_right)
    return Layout(tuple(headers), is_right, tuple(max(width, 1) for width in widths))


def _plain(cell: str) -> str:
    """Return a cell without the marks that a block of code would show."""
    return _MARKS.sub("", cell)


def _aligned(cell: str, width: int, is_right: bool) -> str:
    gap = " " * max(width - cell_len(cell), 0)
    return f"{gap}{cell}" if is_right else f"{cell}{gap}"
