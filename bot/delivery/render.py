"""Turns an answer's text into the contents of the Discord messages that show it.

Owns where a text is cut. A cut never falls inside a word, a link, a custom emoji, a mention, inline code,
a fence marker or a grapheme cluster, unless that alone is longer than a message (inline code and links:
than `markup.MAX_SPAN`); what is cut, a block of code or bold words, is closed and opened anew. A place to
cut is chosen from the message it ends and one character more, so parts are stable: while a text grows, no
part but the last ever changes. Takes time in proportion to the text. Pure; knows nothing of sending.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import regex

from bot.delivery.dialect import translate
from bot.delivery.emphasis import MAX_MARKS, items_above, open_marks, quote_at, without_begun_marks
from bot.delivery.markup import MAX_MARKER, Fence, Scan, scan

MAX_LENGTH = 2000
"""Of a Discord message, in UTF-16 units: never fewer than code points, which Discord is said to count."""
_ROOM = MAX_LENGTH - max(MAX_MARKER + 1, MAX_MARKS)
"""Of a part before what may have to close its code or its marks. Held free in every part, so that what comes
later cannot move a cut."""
_MAX_NOTE = 500
_WIDE = "\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WIDE_ENDS = "\u3001\u3002\u300d\u300f\u3011\u300b\u3009\uff09\uff0c\uff01\uff1f\uff1a\uff1b"
_WIDE_BEGINS = "\u300c\u300e\u3010\u300a\u3008\uff08"
_WIDE_LEANS = "々ーゝゞヽヾぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ"
"""Chinese and Japanese, written without spaces: a line may end almost anywhere, but no line begins with a
mark that ends something or leans on the character before it, or ends with a mark that begins something."""
_PLACES = (
    (0.75, re.compile(r"\n[ \t\r]*\n")),
    (0.5, re.compile(r"\n")),
)
"""Where a part may end, the best first, each from the share of a full part from which on it is taken."""
_WORD_END = regex.compile(
    rf"(?r)[\s\x1c-\x1f]+|(?<=[{_WIDE}{_WIDE_ENDS}])(?![{_WIDE_LEANS}])(?=[{_WIDE}{_WIDE_BEGINS}])"
)
"""Where else. There are many, and the last one is nearly always right: looked for from the end on."""
_WHITESPACE = re.compile(r"\s*")
_BLANK_LINES = re.compile(r"(?:[ \t\r]*+\n)*+")
_CLUSTER = regex.compile(r"\X")
"""What a reader sees as one character: an extended grapheme cluster."""
_PLAIN_BEFORE = regex.compile(r"(?r)\p{Grapheme_Cluster_Break=Other}")
"""The nearest character before a place from which on clusters are the same, whatever comes before it."""
_HEADING = re.compile(r"[ \t]*#{1,3} ")
_RISKY = re.compile(r"\|\|+|<@(?=[!&]?\d)|@(?=everyone|here)", re.IGNORECASE)
BAR = "\u01c0"
"""Looks like a vertical bar and makes no spoiler."""
AT = "\uff20"
"""Looks like an at sign and mentions nobody."""
_SPOILER = 4
"""Bars that may hide something by themselves."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One part: `text[start:end]`, between what opens anew and what closes that which is cut."""

    start: int
    end: int
    head: str = ""
    tail: str = ""

    def show(self, text: str) -> str:
        """Return the content of the message."""
        return defuse(f"{self.head}{text[self.start : self.end]}{self.tail}")


def render(text: str, *, final: bool) -> list[str]:
    """Return the parts that show `text`; none for a blank text.

    Without `final` more text is to come: an open block of code is closed, and what cannot be judged before
    the next characters are there (a run of backticks or tildes, an opening fence without code) is held back.
    """
    shown = translate(text, final=final).text
    return [piece.show(shown) for piece in split(shown, final=final)]


def stretches(text: str, max_parts: int) -> list[str]:
    """Return what of a complete `text` each part shows, where the last of `max_parts` shows all the rest."""
    translation = translate(text, final=True)
    pieces = split(translation.text, final=True)[:max_parts]
    cuts = [0, *(translation.origin(piece.start) for piece in pieces[1:]), len(text)]
    return [text[start:end].rstrip().lstrip("\n") for start, end in pairwise(cuts)] if pieces else []


def with_note(parts: list[str], note: str) -> list[str]:
    """Return `parts` with `note` as a small line below, in a part of its own where the last has no room."""
    line = "-# " + " ".join(note.split())[:_MAX_NOTE]
    if parts and _num_units(parts[-1]) + 1 + _num_units(line) <= MAX_LENGTH:
        return [*parts[:-1], f"{parts[-1]}\n{line}"]
    return [*parts, line]


def with_note_inside(part: str, note: str) -> str:
    """Return `part` with `note` as a small line below it, and less of it where both have no room."""
    whole, *lines = with_note([part], note)
    if not lines:
        return whole
    end = "\n```" if part.rstrip().endswith("```") else ""
    room = MAX_LENGTH - _num_units(lines[0]) - _num_units(end) - 1
    while (excess := _num_units(part) - room) > 0:
        part = part[: -((excess + 1) // 2)]  # a character takes one unit or two
    return f"{part.rstrip()}{end}\n{lines[0]}"


def with_thought(parts: list[str], thought: str) -> list[str]:
    """Return `parts` with `thought` behind a spoiler, in a part of its own: there no other bars are."""
    spoiler = hidden(thought, MAX_LENGTH - _MAX_NOTE)
    return [*parts, spoiler] if spoiler else parts


def split(text: str, *, final: bool) -> list[Piece]:
    """Cut `text` into pieces. Between two pieces lies whitespace, and maybe a fence marker that closes."""
    pieces: list[Piece] = []
    fence: Fence | None = None
    marks: list[str] = []
    line_head = ""
    end = len(text.rstrip())
    start = _skip(_WHITESPACE, text, 0)
    while start < end:
        head = fence.head if fence else line_head + "".join(marks)
        stop = _full_at(text, start, end, _ROOM - len(head))
        if stop == end:
            pieces += _last_piece(text, start, end, fence, head, marks, final=final)
            break
        first = _skip(_WHITESPACE, text, start)
        if first - start > (stop - start) // 2:  # hardly more than whitespace in code: no part shows that
            start = first
            continue
        found = scan(text, start, stop + 1, fence, complete=False)
        cut = _choose_cut(text, start, first, stop, found)
        piece_end = start + len(text[start:cut].rstrip())
        # What a line goes on with may be what keeps backticks from opening a block: the part ends without it.
        seeming = scan(text, start, piece_end, fence, complete=True).fence_at(piece_end)
        fence = found.fence_at(cut)
        to_close = fence or seeming
        marks = [] if to_close else open_marks(text, start, piece_end, marks, found.stretches(stop + 1))
        tail = to_close.tail if to_close else "".join(reversed(marks))
        pieces.append(Piece(start, piece_end, head, tail))
        start, fence = _resume(text, cut, fence)
        start, line_head = (start, "") if fence else _resume_line(text, cut, start)
        if "\n" in text[cut:start] and line_head:
            marks = []
        start, marks = _without_closed(text, cut, start, marks)
    return pieces


def _full_at(text: str, start: int, end: int, room: int) -> int:
    """Return where a part that begins at `start` and has `room` UTF-16 units must end at the latest."""
    window = text[start : min(start + room, end)]
    if window.isascii():
        return start + len(window)
    units = window.encode("utf-16-le", "replace")
    return start + len(units[: 2 * room].decode("utf-16-le", "ignore"))


def _choose_cut(text: str, start: int, first: int, stop: int, found: Scan) -> int:
    """Return the best place after `text[first]`, and at `stop` at the latest, to end a part at."""
    latest = stop
    if found.held is not None and found.held > first:
        latest = min(stop, found.held)
    if found.opened_at is not None and found.opened_at - start > (stop - start) // 2:
        latest = min(latest, found.opened_at)  # a block of code that begins late stays whole
    kept = bytearray(stop + 2 - start)
    for begin, end in found.atoms:
        end = min(end, stop + 2)
        kept[begin + 1 - start : end - start] = b"\1" * (end - begin - 1)

    for cut in _cuts(text, start, first, stop, latest):
        if kept[cut - start] or not is_boundary(text, cut, start):
            continue
        if found.fence_at(cut) or not _is_after_heading(text, start, cut):
            return cut
    # Between two characters, if need be inside something too long for a part.
    ends = [start + cluster.end() for cluster in _CLUSTER.finditer(text[start : latest + 1])]
    places: list[int] = [cut for cut in reversed(ends) if first < cut <= latest] or [latest]
    return next((cut for cut in places if not kept[cut - start]), places[0])


def _cuts(text: str, start: int, first: int, stop: int, latest: int) -> Iterator[int]:
    """Find the places after `text[first]` where a part may end, the best first."""
    for share, place in _PLACES:
        earliest = max(first + 1, start + int((stop - start) * share))
        yield from reversed([match.start() for match in place.finditer(text, earliest, latest + 1)])
    yield from (match.start() for match in _WORD_END.finditer(text, first + 1, latest + 1))


def is_boundary(text: str, index: int, start: int) -> bool:
    """Tell whether a cut before `text[index]` leaves whole what a reader sees as one character.

    `start` is a known boundary at or before `index`; nothing before it is looked at.
    """
    plain = _PLAIN_BEFORE.search(text, start, index)
    begin = plain.start() if plain else start
    clusters = _CLUSTER.finditer(text[begin : index + 1])
    return index in (begin, len(text)) or any(begin + cluster.end() == index for cluster in clusters)


def _is_after_heading(text: str, start: int, cut: int) -> bool:
    """Tell whether the line that ends at `cut` is a heading, which belongs to what follows."""
    before = text[start:cut].rstrip()
    return "\n" in before and _HEADING.match(before, before.rindex("\n") + 1) is not None


def _resume(text: str, cut: int, fence: Fence | None) -> tuple[int, Fence | None]:
    """Return where the next part begins, and the block of code that it begins in."""
    if fence is not None:
        start = _skip(_BLANK_LINES, text, cut)
        closing = fence.closing_at_start.match(text, start)
        if closing is None:
            return start, fence
        cut = closing.end()
    return _skip(_WHITESPACE, text, cut), None


def _resume_line(text: str, cut: int, start: int) -> tuple[int, str]:
    """Return where the next part begins, and what its first line needs before it to be what it was."""
    line_start = text.rfind("\n", cut, start) + 1
    if line_start == 0:
        return start, quote_at(text, cut)
    above = items_above(text, line_start)
    return (line_start, above) if above else (start, "")


def _without_closed(text: str, cut: int, start: int, marks: list[str]) -> tuple[int, list[str]]:
    """Return where the next part begins, and what goes on there: not what ends here, nor past a paragraph."""
    if text.count("\n", cut, start) > 1:
        return start, []
    while marks and text.startswith(marks[-1], start):
        start += len(marks[-1])
        marks = marks[:-1]
    return start, marks


def _skip(blank: re.Pattern[str], text: str, start: int) -> int:
    """Return where `blank` ends, one less where its last character carries a mark."""
    match = blank.match(text, start)
    end = match.end() if match else start
    return end if end == start or is_boundary(text, end, end - 1) else end - 1


def _last_piece(
    text: str, start: int, end: int, fence: Fence | None, head: str, marks: list[str], *, final: bool
) -> list[Piece]:
    """Return the piece that shows the rest of `text`; none where nothing of it can be shown yet.

    `marks` are those that `head` opens anew: they are closed in any case, others only before the end.
    """
    found = scan(text, start, end, fence, complete=True)
    has_code = found.opened_at is None or bool(text[found.code_from : end].strip())
    if not final:
        if end == len(text) and not found.is_closed_at(end):
            shown = text[start:end].rstrip("`~")
            end = start + len(shown if found.fence else without_begun_marks(shown))
        if found.opened_at is not None and not has_code:
            end = min(end, found.opened_at)
        end = start + len(text[start:end].rstrip())
    fence = found.fence_at(end)
    if fence is not None:
        tail = fence.tail if has_code else ""
    else:
        is_open = open_marks(text, start, end, marks, found.stretches(end))
        closed = (
            is_open[: len(marks)] if final and is_open[: len(marks)] == marks[: len(is_open)] else is_open
        )
        tail = "".join(reversed([] if final and not marks else closed))
    return [Piece(start, end, head, tail)] if end > start else []


def _num_units(text: str) -> int:
    return len(text.encode("utf-16-le", "replace")) // 2


def defuse(part: str) -> str:
    """Return the content of a message without spoilers and mentions outside of code. As long as before.

    One pair of bars alone hides nothing, so the first one stays as it was written.
    """
    if _RISKY.search(part) is None:
        return part
    found = scan(part, 0, len(part), None, complete=True)
    code = [(start, end) for start, end in found.atoms if part[start] == "`"]
    has_bars = False

    def replace(match: re.Match[str]) -> str:
        nonlocal has_bars
        at, risky = match.start(), match[0]
        if found.fence_at(at) is not None or any(start <= at < end for start, end in code):
            return risky
        if risky[0] != "|":
            return risky.replace("@", AT)
        is_first, has_bars = not has_bars, True
        return risky if is_first and len(risky) < _SPOILER else "|" + BAR * (len(risky) - 1)

    return _RISKY.sub(replace, part)


def hidden(text: str, max_length: int) -> str:
    """Return a text behind one spoiler, cut to `max_length` UTF-16 units, that has no other effect."""
    plain = text.strip().replace("|", BAR).replace("`", "'").replace("@", AT)
    room = 2 * (max_length - 5)
    units = plain.encode("utf-16-le", "replace")
    cut = plain if len(units) <= room else f"{units[:room].decode('utf-16-le', 'ignore').rstrip()}…"
    return f"||{cut}||" if cut else ""
