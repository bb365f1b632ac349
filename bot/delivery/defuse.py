"""Takes the effect out of what only people may do: mention somebody, hide text as a spoiler.

Changes characters for others that look alike and are as long, so that nothing moves and a part that is shown
defused is cut where it was. Code stays as it is: Discord shows it literally. Knows nothing of sending.
"""

from __future__ import annotations

import re

from bot.delivery.markup import scan

_RISKY = re.compile(r"\|\|+|<@(?=[!&]?\d)|@(?=everyone|here)", re.IGNORECASE)
BAR = "\u01c0"
"""Looks like a vertical bar and makes no spoiler."""
AT = "\uff20"
"""Looks like an at sign and mentions nobody."""


def defuse(part: str) -> str:
    """Return the content of a message without spoilers and mentions outside of code. As long as before."""
    if _RISKY.search(part) is None:
        return part
    found = scan(part, 0, len(part), None, complete=True)
    code = [(start, end) for start, end in found.atoms if part[start] == "`"]

    def replace(match: re.Match[str]) -> str:
        at = match.start()
        if found.fence_at(at) is not None or any(start <= at < end for start, end in code):
            return match[0]
        return _defused(match[0])

    return _RISKY.sub(replace, part)


def _defused(risky: str) -> str:
    if risky[0] == "|":
        return "|" + BAR * (len(risky) - 1)
    return risky.replace("@", AT)
