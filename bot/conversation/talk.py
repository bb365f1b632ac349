"""What people said in a channel before a question that nobody said to us, and what the model is told of it.

It is given to the model with the question, and never stored. Pure; knows nothing of Discord, of who may be
heard, and of where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from bot.conversation.mentions import label
from engine.types import TALK

MAX_MESSAGES = 30
MAX_AGE = timedelta(hours=3)
MAX_CHARS = 600
"""Of one message."""
SHARE = 1 / 6
"""As much as this of what a conversation may take. It is computed anew with every question."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One message that was not for us. channel_id: where it was said."""

    discord_id: int
    channel_id: int
    author_id: int
    author_name: str
    content: str
    said_at: datetime


@dataclass(frozen=True, slots=True)
class Moment:
    """Where and before which message to listen, in a server. at: when that message was sent."""

    guild_id: int
    channel_id: int
    discord_id: int
    at: datetime


class Ears(Protocol):
    """Whoever gets a server's messages. Nothing here raises."""

    async def before(self, moment: Moment) -> Sequence[Heard]:
        """Return the newest messages before a moment, oldest first; none where a server does not want it."""

    def taken(self, channel_id: int, discord_id: int) -> None:
        """Learn that a message is a question: it is remembered as one, or forgotten, and never overheard."""

    def forget(self, user_id: int) -> None:
        """Keep nothing of what a person said."""


class NoEars:
    """Hears nothing."""

    async def before(self, moment: Moment) -> Sequence[Heard]:  # noqa: ARG002 - the protocol's signature
        """Return nothing."""
        return ()

    def taken(self, channel_id: int, discord_id: int) -> None:
        """Do nothing."""

    def forget(self, user_id: int) -> None:
        """Do nothing."""


def lately(heard: Sequence[Heard], moment: Moment) -> list[Heard]:
    """Return what was said lately enough before a moment, oldest first."""
    since = moment.at - MAX_AGE
    before = (one for one in heard if one.discord_id < moment.discord_id and one.said_at >= since)
    return sorted(before, key=lambda one: one.discord_id)[-MAX_MESSAGES:]


def lines_of(heard: Sequence[Heard]) -> list[str]:
    """Return a line for each message, quoted as people quote. Namesakes get a number.

    What follows in a message is set in, so that none of it looks like the words of somebody else.
    """
    names: dict[int, str] = {}
    for one in heard:
        name, number = label(one.author_name), 2
        unique = name
        while unique in (other for author_id, other in names.items() if author_id != one.author_id):
            unique, number = f"{name} ({number})", number + 1
        names.setdefault(one.author_id, unique)
    return [_line(names[one.author_id], one.content) for one in heard]


def told(lines: Sequence[str], count: Callable[[str], int], max_tokens: int) -> str:
    """Return what the model is told: the newest of the lines, as many as fit; nothing where none does."""
    shown: list[str] = []
    room = max_tokens - count(f"{TALK}\n\n")
    for line in reversed(lines):
        room -= count(f"{line}\n")
        if room < 0:
            break
        shown.insert(0, line)
    return "\n".join((TALK, *shown)) if shown else ""


def _line(name: str, content: str) -> str:
    text = content if len(content) <= MAX_CHARS else f"{content[:MAX_CHARS]}…"
    first, *more = [line.rstrip() for line in text.splitlines() if line.strip()] or [""]
    return "\n".join((f"> {name}: {first}", *(f">     {line}" for line in more)))
