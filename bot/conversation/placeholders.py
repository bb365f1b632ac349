"""What system prompts may leave open: the date, the time, and the names of where something is said. Pure.

Names come from people, so they are put in as labels: none can open a control tag.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from bot.conversation.mentions import label

MINUTES = 15
"""Steps of the time: each new one makes a prompt whose KV is not there yet."""
_MAX_NAME = 100
"""As long as Discord lets a channel's name be."""
_OPEN = re.compile(r"\{(date|time|weekday|server|channel|bot)\}")
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The names of a place. An empty one is of no server, as in a direct message; None is not known."""

    bot: str | None = None
    server: str | None = ""
    channel: str | None = ""


Surround = Callable[[int | None, int | None], Surroundings]
"""Returns the names for a server and a channel, by their ids."""


def filled(prompt: str, surroundings: Surroundings, now: datetime) -> str:
    """Return a system prompt with its placeholders filled in; all else in braces stays as it was written."""
    values = {
        "date": f"{now:%Y-%m-%d}",
        "time": f"{now.replace(minute=now.minute - now.minute % MINUTES):%H:%M %Z}".rstrip(),
        "weekday": _WEEKDAYS[now.weekday()],
        "server": _name(surroundings.server),
        "channel": _name(surroundings.channel),
        "bot": _name(surroundings.bot),
    }
    return _OPEN.sub(lambda found: values[found[1]] or found[0], prompt)


def _name(name: str | None) -> str | None:
    if name is None:
        return None
    return label(name, _MAX_NAME) if name else "direct messages"
