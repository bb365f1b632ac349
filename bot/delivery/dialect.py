"""A model's Markdown in what Discord knows: headings, rules, task lists, footnotes, tables, formulas.

Reads a text that may still grow, and translates only what nothing that follows can change: what is given for
a text is always the beginning of what is given for more of it. Code stays as it is. Pure; knows nothing of
messages and where they are cut.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import regex

from bot.delivery.formulas import MAX_FORMULA, raised, readable
from bot.delivery.markup import scan
from bot.delivery.tables import cells_of, layout_of

RULE = "─" * 16
MAX_UNDECIDED = 1000
"""Characters of a table that choose its layout, and of a line that may be its first one."""
_QUOTE = regex.compile(r"[ \t]{0,3}+>++(?:[ \t]++>++)*+(?:[ \t]++(?=[^ \t>])|(?=\r?\n))")
_HEADING = regex.compile(r"[ \t]{0,3}+#{4,6}+[ \t]++")
_RULE = regex.compile(r"[ \t]{0,3}+(?P<mark>[-*_=])[ \t]*+(?:(?P=mark)[ \t]*+){2,}+(?=\r?\n)")
_TASK = regex.compile(r"(?P<item>[ \t]*+(?:[-*+]|[0-9]{1,9}+[.)])[ \t]++)\[(?P<box>[ xX])\][ \t]++")
_NOTE = regex.compile(r"[ \t]{0,3}+\[\^(?P<name>[0-9]{1,3}+)\]:[ \t]*+")
_ROW = regex.compile(r"[ \t]*+\|")
_DELIMITER = regex.compile(r"[ \t]*+\|(?:[ \t]*+:?+-++:?+[ \t]*+\|)*+(?:[ \t]*+:?+-++:?+[ \t]*+)?+\r?\n")
_TOKEN = regex.compile(r"\n|(?<!\\)(?:\\[(\[]|\$\$?)|\[\^(?=[0-9])")
_BEGUN = regex.compile(r"(?:\\\[?|\[\^?|\$+)\Z")
"""What may be the beginning of a token."""
_INSIDE = (
    rf"(?P<formula>(?:[^\\$]|\\(?![\[\]()$])|\\\$|(?<=\\left|\\right|\\[bB]ig[lr]?)\\?[\[\]()])"
    rf"{{1,{MAX_FORMULA}}}+)"
)
_FORMULAS = {
    r"\(": regex.compile(rf"\\\({_INSIDE}\\\)"),
    r"\[": regex.compile(rf"\\\[{_INSIDE}\\\]"),
    "$$": regex.compile(rf"\$\${_INSIDE}\$\$"),
    "$": regex.compile(r"(?<![\w$])\$(?=[^\s$])(?P<formula>[^\n$]{1,200}+)(?<=\S)\$(?!\w)"),
}
_PRICE = regex.compile(r"\$[0-9][0-9.,]*+(?:[\s.,;:!?)]|[kKmMbB]\b)")
_IS_FORMULA = regex.compile(r"[\\^_=]|^[^\W\d_]$")
"""What tells a formula between two dollars from two prices."""
_REFERENCE = regex.compile(r"\[\^(?P<name>[0-9]{1,3}+)\]")


@dataclass(slots=True)
class Translation:
    """A text as Discord shows it, and where each stretch of it comes from."""

    text: str = ""
    _segments: list[tuple[int, int, int]] = field(default_factory=list)
    """Where a stretch begins here, and where it begins and ends in the model's text."""

    def origin(self, index: int) -> int:
        """Return the place in the model's text that `index` stands for."""
        at = bisect_right(self._segments, (index, 1 << 62, 0)) - 1
        if at < 0:
            return 0
        shown_from, start, end = self._segments[at]
        return start if index == shown_from else min(start + index - shown_from, end)


def translate(text: str, *, final: bool) -> Translation:
    """Return `text` for Discord; unless it is `final`, as much of it as is sure."""
    return _Translator(text, final=final).run()


class _Translator:
    """One pass from left to right; a step reads one token, or one line that is something as a whole."""

    def __init__(self, text: str, *, final: bool) -> None:
        # A line end before and after the text saves special cases; neither is ever given out.
        self._text = f"\n{text}\n" if final else f"\n{_BEGUN.sub('', text)}"
        self._final = final
        self._end = len(self._text) - final
        found = scan(self._text, 0, self._end, None, complete=final)
        self._settled = self._end if found.held is None else found.held
        self._code = found.stretches(self._end)
        self._next_code = 0
        self._pos = 1
        self._is_quoted = False
        self._shown: list[str] = []
        self._num_shown = 0
        self._segments: list[tuple[int, int, int]] = []

    def run(self) -> Translation:
        goes_on = True
        while goes_on and self._pos < self._end:
            goes_on = self._step()
        return Translation("".join(self._shown), self._segments)

    def _step(self) -> bool:
        """Go on by one token. Like all that reads, return False where more of the text is needed."""
        start, end = self._code_ahead()
        if start <= self._pos:
            self._keep(end)
            return True
        if self._text[self._pos - 1] == "\n":
            if not self._begin_line():
                return False
            start, end = self._code_ahead()
        token = _TOKEN.search(self._text, self._pos, min(start, self._end))
        if token is None:
            self._keep(max(start, self._pos))
            return True
        self._keep(token.start())
        if not self._final and token.start() >= self._settled:
            return False
        if token[0] == "\n":
            self._keep(token.end())
            return True
        return self._reference() if token[0] == "[^" else self._formula(token[0])

    def _code_ahead(self) -> tuple[int, int]:
        """Return the code, link or the like that is here or comes next."""
        while self._next_code < len(self._code) and self._code[self._next_code][1] <= self._pos:
            self._next_code += 1
        return self._code[self._next_code] if self._next_code < len(self._code) else (self._end, self._end)

    def _begin_line(self) -> bool:
        """Translate what a line begins with, or the table that begins here."""
        is_quoted, self._is_quoted = self._is_quoted, False
        for pattern in (_QUOTE, _HEADING, _RULE, _TASK, _NOTE):
            found = pattern.match(self._text, self._pos, partial=not self._final)
            if found is None:
                continue
            if found.partial:
                return False
            if pattern is _QUOTE:
                self._put("> ", found.end())
                self._is_quoted = True
                return self._begin_line()
            self._put(_said(pattern, found), found.end())
            return True
        if not is_quoted and _ROW.match(self._text, self._pos):
            return self._table()
        return True

    def _table(self) -> bool:
        """Translate a table, as far as its rows are there."""
        begin, text = self._pos, self._text
        first_end = self._line_end(begin)
        if first_end is None:
            return self._is_long(begin)
        delimiter = _DELIMITER.match(text, first_end, partial=not self._final)
        if delimiter is None or "```" in text[begin:first_end]:
            return True
        if delimiter.partial:
            return self._is_long(begin)
        headers, delimiters = text[begin:first_end], text[first_end : delimiter.end()]
        if len(cells_of(headers)) != len(cells_of(delimiters)):
            return True
        rows, has_ended = self._rows(delimiter.end())
        num_known = self._settled if not self._final else self._end
        if not has_ended and num_known < begin + MAX_UNDECIDED:
            return False
        deciding = [self._cells(text[a:b]) for a, b in rows if b < begin + MAX_UNDECIDED]
        layout = layout_of(self._cells(headers), delimiters, deciding)
        self._put(layout.opening, first_end)
        self._put(layout.rule, delimiter.end())
        for row_start, row_end in rows:
            self._put(layout.row(self._cells(text[row_start:row_end])), min(row_end, self._end))
        if has_ended:
            self._put(layout.closing, self._pos)
        return has_ended

    def _rows(self, start: int) -> tuple[list[tuple[int, int]], bool]:
        """Return where the rows from `start` on begin and end, and whether no more belong to them."""
        rows: list[tuple[int, int]] = []
        while start < self._end:
            row = _ROW.match(self._text, start, partial=not self._final)
            if row is not None and row.partial:
                return rows, False
            end = self._line_end(start)
            if row is None or (end is not None and "```" in self._text[start:end]):
                return rows, True
            if end is None:
                return rows, False
            rows.append((start, end))
            start = end
        return rows, self._final

    def _line_end(self, start: int) -> int | None:
        """Return where the next line begins, None where that is not there yet, or not sure."""
        end = self._text.find("\n", start)
        is_sure = self._final or 0 <= end < self._settled
        return end + 1 if is_sure else None

    def _is_long(self, begin: int) -> bool:
        """Tell whether what begins here is too long to wait for more of it."""
        return self._final or self._end - begin > MAX_UNDECIDED

    def _cells(self, row: str) -> list[str]:
        return [translate(cell, final=True).text if _TOKEN.search(cell) else cell for cell in cells_of(row)]

    def _formula(self, opening: str) -> bool:
        """Translate a formula; one that does not read well is code."""
        if opening == "$" and _PRICE.match(self._text, self._pos):
            self._keep(self._pos + 1)
            return True
        found = _FORMULAS[opening].match(self._text, self._pos, self._end, partial=not self._final)
        if found is not None and found.partial:
            return False
        if found is None or (opening == "$" and not _IS_FORMULA.search(found["formula"])):
            self._keep(self._pos + len(opening))
            return True
        latex = found["formula"].strip()
        shown = readable(latex)
        if shown is None and latex and "`" not in latex:
            shown = f"```latex\n{latex}\n```" if "\n" in latex else f"`{latex}`"
        if shown is None:
            self._keep(found.end())
        else:
            self._put(shown, found.end())
        return True

    def _reference(self) -> bool:
        found = _REFERENCE.match(self._text, self._pos, self._end, partial=not self._final)
        if found is not None and found.partial:
            return False
        if found is None:
            self._keep(self._pos + 2)
        else:
            self._put(raised(found["name"]) or found[0], found.end())
        return True

    def _keep(self, end: int) -> None:
        """Give the text up to `end` as it is."""
        end = min(end, self._end)
        if end > self._pos:
            self._put(self._text[self._pos : end], end)

    def _put(self, shown: str, end: int) -> None:
        """Give `shown` for the text up to `end`."""
        self._segments.append((self._num_shown, self._pos - 1, end - 1))
        self._shown.append(shown)
        self._num_shown += len(shown)
        self._pos = end


def _said(pattern: object, found: regex.Match[str]) -> str:
    """Return what Discord knows in the place of what a line began with."""
    if pattern is _HEADING:
        return "### "
    if pattern is _RULE:
        return RULE
    if pattern is _TASK:
        return f"{found['item']}{'☐' if found['box'] == ' ' else '☑'} "
    return f"-# {raised(found['name'])} "
