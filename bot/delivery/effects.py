"""What a text must not do to its readers: hide something, mention somebody. Pure."""

from __future__ import annotations

import re

from bot.delivery.markup import scan

_RISKY = re.compile(r"\|\|+|<@(?=[!&]?\d)|@(?=everyone|here)", re.IGNORECASE)
BAR = "\u01c0"
"""Looks like a vertical bar and makes no spoiler."""
AT = "\uff20"
"""Looks like an at sign and mentions nobody."""


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


_SPOILER = 4
"""Bars that may hide something by themselves."""


def hidden(text: str, max_length: int) -> str:
    """Return a text behind one spoiler, cut to `max_length` UTF-16 units, that has no other effect."""
    plain = text.strip().replace("|", BAR).replace("`", "'").replace("@", AT)
    room = 2 * (max_length - 5)
    units = plain.encode("utf-16-le", "replace")
    cut = plain if len(units) <= room else f"{units[:room].decode('utf-16-le', 'ignore').rstrip()}…"
    return f"||{cut}||" if cut else ""
