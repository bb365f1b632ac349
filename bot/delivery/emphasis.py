"""What goes on where a message ends: bold and italic words, quotes, the place of an item in a list.

Pure. Reads nothing behind the place it is asked about, so that what it says of a place never changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MAX_MARKS = 9
"""Characters of all that is open at one place; what would be more is read as text."""
_LOOK_BACK = 20_000
"""Characters in which the items above are looked for."""
_NO_TEXT = "\u200b"
"""Stands in an item whose text is in an earlier message."""
_TOKEN = re.compile(
    r"[\\*_~\n](?:(?<=\\).|(?<=\*)\*{0,2}|(?<=_)_{0,2}|(?<=~)~"
    r"|(?P<block>(?<=\n)(?=[ \t>]*(?:\n|[-*+][ \t]|\d{1,9}[.)][ \t]|\#|`{3}|~{3}))))",
    re.DOTALL,
)
"""Begins with a set of characters, and is many times faster so than as a choice of tokens."""
_QUOTE = re.compile(r"[ \t]*(?:>[ \t]?)+")
_ITEM = re.compile(r"(?P<indent>[ \t]*)(?:[-*+]|\d{1,9}[.)])[ \t]")
_TRAILING_MARKS = re.compile(r"(?:\*|_|~)+\Z")


def open_marks(
    text: str, start: int, end: int, carried: Sequence[str], code: Iterable[tuple[int, int]]
) -> list[str]:
    """Return the marks that are open at `end`, the outermost first, where `carried` are at `start`.

    `code`: stretches in which nothing is a mark, in order. Marks end with their paragraph.
    """
    is_open = list(carried)
    skipped = iter([*code, (end, end)])
    skip_from, skip_to = next(skipped)
    for token in _TOKEN.finditer(text, start, end):
        while skip_to <= token.start() and skip_from < end:
            if skip_from >= start and "\n" in text[skip_from:skip_to]:
                is_open.clear()
            skip_from, skip_to = next(skipped)
        if skip_from <= token.start() < skip_to or token[0][0] == "\\":
            continue
        if token["block"] is not None:
            is_open.clear()
        else:
            _read(text, token, start, is_open)
    return is_open


def _read(text: str, token: re.Match[str], start: int, is_open: list[str]) -> None:
    """Close and open what a run of marks closes and opens."""
    run, char = token[0], token[0][0]
    before = text[token.start() - 1] if token.start() > start else " "
    after = text[token.end()] if token.end() < len(text) else " "
    may_close = not before.isspace() and (char != "_" or not after.isalnum())
    if may_close and run in is_open:
        del is_open[is_open.index(run) :]
        return
    while may_close and run and is_open and is_open[-1][0] == char and run.startswith(is_open[-1]):
        run = run[len(is_open.pop()) :]
    fits = sum(map(len, is_open)) + len(run) <= MAX_MARKS
    if run and fits and not after.isspace() and not before.isalnum() and run not in is_open:
        is_open.append(run)


def quote_at(text: str, place: int) -> str:
    """Return the mark of the quote that the line of `place` is in, so that the rest of it is quoted too."""
    quote = _QUOTE.match(text, text.rfind("\n", 0, place) + 1, place)
    return "> " if quote else ""


def items_above(text: str, line_start: int) -> str:
    """Return the items, without their text, that the item in this line is below: else it would be on top."""
    item = _ITEM.match(text, line_start)
    depth = 0 if item is None else len(item["indent"])
    above: list[str] = []
    for line in reversed(text[max(line_start - _LOOK_BACK, 0) : line_start].splitlines()):
        if depth == 0:
            break
        item = _ITEM.match(line)
        if item is not None and len(item["indent"]) < depth:
            depth = len(item["indent"])
            above.insert(0, f"{' ' * depth}- {_NO_TEXT}\n")
        elif item is None and line.strip() and len(line) - len(line.lstrip()) < depth:
            break
    return "".join(above[-4:])


def without_begun_marks(text: str) -> str:
    """Return `text` without a run of marks at its end, which may be longer than is seen yet."""
    return _TRAILING_MARKS.sub("", text)
