"""What of a stretch of Markdown must stay together, and where it is inside a code fence.

Reads Markdown as Discord shows it: three or more backticks open a block and the next run of at least as
many closes it, wherever on a line it stands. `~~~` blocks follow CommonMark. Looks at nothing outside the
stretch it is given, so that what it says of a stretch never changes while the text after it grows. Knows
nothing of message lengths and never changes a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

MAX_MARKER = 8
"""Longer runs of backticks or tildes are not fence markers."""
MAX_SPAN = 800
"""Inline code and links longer than this are read as plain text."""
MAX_LANGUAGE = 32
_MAX_INFO = 100
_MAX_ANGLE = 120

_TOKEN = re.compile(r"[`~!\[<hH](?:(?<=`)`*|(?<=~)~{2,}|(?<=!)\[|(?<=[\[<])|(?<=[hH])(?i:ttps?://))")
"""Begins with a set of characters, and is many times faster so than as a choice of tokens."""
_NEWLINE = re.compile(r"\n")
_LINE_PREFIX = re.compile(r"[ \t]*(?:(?:>|[-*+][ \t]|\d{1,9}[.)][ \t])[ \t]*)*")
_LANGUAGE = re.compile(rf"[ \t]*([\w+#.-]{{1,{MAX_LANGUAGE}}})(?![\w+#.-])", re.ASCII)
_ONLY_LANGUAGE = re.compile(rf"[ \t]*[\w+#.-]{{0,{MAX_LANGUAGE}}}[ \t\r]*", re.ASCII)
_LINK = re.compile(
    r"!?\[[^\[\]\n]*+\]"
    r"\([ \t]*+[^\s()]*+(?:\([^\s()]*+\)[^\s()]*+)*+"
    r"(?:[ \t]++(?:\"[^\"\n]*+\"|'[^'\n]*+'))?+[ \t]*+\)"
)
_LINK_BEGUN = re.compile(r"!?\[[^\[\]\n]*+(?:\](?:\([^\n]*+)?+)?+\Z")
_ANGLE = re.compile(
    r"<(?:a?:\w{1,32}:\d{1,25}|@[!&]?\d{1,25}|#\d{1,25}|t:-?\d{1,20}(?::[a-z])?|id:\w{1,32}"
    r"|/[^<>\n:]{1,80}:\d{1,25}|https?://[^\s<>]*+)>",
    re.ASCII | re.IGNORECASE,
)
_ANGLE_BEGUN = re.compile(r"<[^<>\n]*+\Z")
_BEGUN = re.compile(r"(?:[`~]+|h(?:t(?:t(?:p(?:s?(?::/?)?)?)?)?)?)\Z", re.IGNORECASE)
_URL_REST = re.compile(r"[^\s<>`]*")


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


@dataclass(slots=True)
class Scan:
    """What was found between two places of a text. Places are indices into the whole text."""

    fence: Fence | None
    """The block that is open at the end."""
    atoms: list[tuple[int, int]] = field(default_factory=list)
    """Stretches that must not be cut inside."""
    held: int | None = None
    """Where something begins whose end lies beyond: no cut after this place."""
    opened_at: int | None = None
    """Where the block that is open at the end begins; None if it was open from the start."""
    code_from: int = 0
    """Where the code of that block begins, after its marker and info string."""
    _turns: list[tuple[int, Fence | None]] = field(default_factory=list)

    def fence_at(self, index: int) -> Fence | None:
        """Return the block a cut at `index` would be in."""
        for place, fence in reversed(self._turns):
            if place <= index:
                return fence
        return None

    def is_closed_at(self, index: int) -> bool:
        """Tell whether code, a link or the like ends at `index`."""
        return bool(self.atoms) and self.atoms[-1][1] == index

    def stretches(self, end: int) -> list[tuple[int, int]]:
        """Return blocks of code and all else that stays as it is, in order; `end` is that of the text."""
        places = [*self._turns, (end + 1, None)]
        blocks = [
            (at - 1, places[n + 1][0]) for n, (at, fence) in enumerate(self._turns) if fence is not None
        ]
        found = sorted([*blocks, *self.atoms])
        return [(max(start, 0), min(stop, end)) for start, stop in found]

    def turn(self, index: int, fence: Fence | None) -> None:
        """Note that from `index` on the text is in `fence`."""
        self.fence = fence
        self._turns.append((index, fence))


def scan(text: str, start: int, stop: int, fence: Fence | None, *, complete: bool) -> Scan:
    """Read `text[start:stop]`, which begins inside `fence`.

    Without `complete` the text goes on after `stop` in an unknown way; with it the text ends there.
    """
    scanner = _Scanner(text, start, stop, complete)
    scanner.found.turn(start, fence)
    return scanner.run()


class _Scanner:
    """One pass from left to right; each step reads one token and moves on behind it."""

    def __init__(self, text: str, start: int, stop: int, complete: bool) -> None:
        self.found = Scan(None)
        self._text = text
        self._start = start
        self._stop = stop
        self._complete = complete

    def run(self) -> Scan:
        pos: int | None = self._start
        while pos is not None:
            pos = self._code(pos, self.found.fence) if self.found.fence else self._prose(pos)
        if not self._complete:
            self._hold_unfinished_token()
        return self.found

    def _code(self, pos: int, fence: Fence) -> int | None:
        """Go to the end of the block. Like every step, return where to go on, None at the end."""
        closing = fence.closing.search(self._text, pos, self._stop)
        if closing is None:
            return None
        if self._is_cut_off(closing.end()):
            return self._hold(closing.start())
        self.found.turn(closing.end(), None)
        self.found.opened_at = None
        return self._keep(closing.start(), closing.end())

    def _prose(self, pos: int) -> int | None:
        token = _TOKEN.search(self._text, pos, self._stop)
        if token is None:
            return None
        match token.group()[0]:
            case "`":
                return self._backticks(token.start(), token.end())
            case "~":
                return self._tildes(token)
            case "<":
                return self._angle(token.start())
            case "[" | "!":
                return self._link(token)
            case _:
                end = _URL_REST.match(self._text, token.end(), self._stop)
                return self._keep(token.start(), end.end() if end else token.end())

    def _backticks(self, start: int, end: int) -> int | None:
        if end - start > MAX_MARKER:
            return end
        if self._is_cut_off(end):
            return self._hold(start)
        return self._block(start, end) if end - start >= 3 else self._inline_code(start, end)

    def _block(self, start: int, end: int) -> int | None:
        """Read a run of three or more backticks: a block, or inline code with many backticks."""
        limit = min(start + MAX_SPAN, self._stop)
        line = _line_or_closing(end - start).search(self._text, end, limit)
        if line and line["closing"] and not self._is_cut_off(line.end()):
            return self._keep(start, line.end())
        if (line is None or line["closing"]) and self._is_cut_off(limit):
            return self._hold(start)
        info = self._text[end : line.start() if line else limit]
        if self._begins_line(start) or _ONLY_LANGUAGE.fullmatch(info):
            return self._open(start, Fence(self._text[start:end]), end, info, line)
        return self._inline_code(start, end)

    def _tildes(self, token: re.Match[str]) -> int | None:
        marker = token.group()
        if len(marker) > MAX_MARKER or not self._begins_line(token.start()):
            return token.end()
        if self._is_cut_off(token.end()):
            return self._hold(token.start())
        limit = min(token.start() + MAX_SPAN, self._stop)
        line = _NEWLINE.search(self._text, token.end(), limit)
        if line is None and self._is_cut_off(limit):
            return self._hold(token.start())
        info = self._text[token.end() : line.start() if line else limit]
        return self._open(token.start(), Fence(marker), token.end(), info, line)

    def _open(self, start: int, fence: Fence, end: int, info: str, line: re.Match[str] | None) -> int:
        """Enter a block; its opening line and the first character of its code stay together."""
        code_from = end
        if line and len(info) <= _MAX_INFO:
            language = _LANGUAGE.match(info)
            fence = Fence(fence.marker, language[1] if language else "")
            code_from = line.end()
        elif line is None and _ONLY_LANGUAGE.fullmatch(info):
            code_from = self._stop
        self.found.turn(start + 1, fence)
        self.found.opened_at = start
        self.found.code_from = code_from
        self._keep(start, code_from + 1)
        return end

    def _inline_code(self, start: int, end: int) -> int | None:
        limit = min(start + MAX_SPAN, self._stop)
        found = _code_end(end - start).search(self._text, end, limit)
        if (found is None and self._is_cut_off(limit)) or (found and self._is_cut_off(found.end())):
            return self._hold(start)
        return self._keep(start, found.end()) if found and found["closing"] else end

    def _link(self, token: re.Match[str]) -> int | None:
        limit = min(token.start() + MAX_SPAN, self._stop)
        link = _LINK.match(self._text, token.start(), limit)
        if link:
            return self._keep(token.start(), link.end())
        if self._is_cut_off(limit) and _LINK_BEGUN.match(self._text, token.start(), limit):
            return self._hold(token.start())
        return token.end()

    def _angle(self, start: int) -> int | None:
        """Read a mention, a custom emoji, a timestamp or a link in angle brackets."""
        angle = _ANGLE.match(self._text, start, self._stop)
        if angle:
            return self._keep(start, angle.end())
        is_near_end = not self._complete and self._stop - start <= _MAX_ANGLE
        if is_near_end and _ANGLE_BEGUN.match(self._text, start, self._stop):
            return self._hold(start)
        return start + 1

    def _begins_line(self, index: int) -> bool:
        """Tell whether only indentation, quote and list marks stand before `index` on its line."""
        line_start = max(self._text.rfind("\n", self._start, index) + 1, self._start)
        return _LINE_PREFIX.fullmatch(self._text, line_start, index) is not None

    def _hold_unfinished_token(self) -> None:
        """Keep whole what may be the beginning of a fence marker or an address."""
        begun = _BEGUN.search(self._text, self._stop - MAX_MARKER, self._stop)
        if begun and self.found.held is None:
            self._hold(begun.start())

    def _is_cut_off(self, end: int) -> bool:
        return end == self._stop and not self._complete

    def _hold(self, start: int) -> int | None:
        """Stop reading: what begins at `start` ends beyond what can be seen."""
        if start > self._start:
            self.found.held = start
        return None

    def _keep(self, start: int, end: int) -> int:
        self.found.atoms.append((start, end))
        return end


@cache
def _pattern(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.MULTILINE)


@cache
def _line_or_closing(length: int) -> re.Pattern[str]:
    """Find the end of a line, or a run of backticks that ends a block opened on the same line."""
    return re.compile(rf"(?P<closing>(?<!`)`{{{length},{MAX_MARKER}}}(?!`))|\n")


@cache
def _code_end(length: int) -> re.Pattern[str]:
    """Find the end of inline code, or what shows that it never was any: a blank line, a fence."""
    fence = r"|`{3,}" if length < 3 else ""
    return re.compile(rf"(?P<closing>(?<!`)`{{{length}}}(?!`)){fence}|\n[ \t\r]*\n")
