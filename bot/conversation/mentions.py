"""Is a message for us, and what does it say? Pure: values in, values out.

Knows nothing of Discord's objects: the client turns a message into an `Incoming`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

MAX_LABEL_CHARS = 32
FALLBACK_LABEL = "User"

_TOKEN = re.compile(
    r"<(?:@!?(?P<user>[0-9]{1,20})|@&(?P<role>[0-9]{1,20})|#(?P<channel>[0-9]{1,20})"
    r"|a?:(?P<emoji>[A-Za-z0-9_]{2,32}):[0-9]{1,20}|/(?P<command>[\w -]{1,100}):[0-9]{1,20}"
    r"|t:(?P<time>-?[0-9]{1,12})(?::(?P<style>[tTdDfFRsS]))?)>"
)
_QUOTED = re.compile(
    r"```.+?```|(?<!`)(?P<ticks>`{1,2})(?!`).+?(?<!`)(?P=ticks)(?!`)|^>>> .*|^> [^\n]*",
    re.DOTALL | re.MULTILINE,
)
"""Quoted lines, and code that ends: backticks that nothing closes are only characters."""
_WORDLESS = re.compile(r"<a?:\w{2,32}:[0-9]{1,20}>|https?://\S+")
_COMMAND = re.compile(
    r"(?:[!?/+~^&%>]{1,2}|[b-df-hj-np-tv-z]{1,2}[!;~](?=[a-z]))[0-9]?[A-Za-z][\w-]*(?:\s|\Z)"
    r"|[.$;,=-]{1,2}[a-z][\w-]*(?:\s(?!.*\?\s*\Z)|\Z)",
    re.DOTALL,
)
"""How people call other bots: `!play`, `p!catch`. What begins like `.env` and asks is a question."""
_CALL = re.compile(r"@(?P<name>[^\s@,:]{2,32})")
_MIN_NAME_CHARS = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES = {"t": "%H:%M UTC", "T": "%H:%M:%S UTC", "d": "%Y-%m-%d", "D": "%Y-%m-%d"}
"""What `<t:…>` shows, by its style; all others show date and time."""
_LABEL_FORBIDDEN = frozenset("<>[]|:")


@dataclass(frozen=True, slots=True)
class Bot:
    """Who we are: our user, and the role that Discord made for us in this server, if any."""

    user_id: int
    name: str
    managed_role_id: int | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """What the ids in a text stand for, as people see them."""

    users: Mapping[int, str] = field(default_factory=dict)
    roles: Mapping[int, str] = field(default_factory=dict)
    channels: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message as far as the decision needs it.

    `mentioned_role_ids` holds roles named in the text; @everyone and @here are in neither set.
    `is_ordinary` is false for joins, pins, boosts and other messages of the system. `names_others`: it
    mentions somebody besides us and its author, a role of others, or everybody. `is_reply`: whether it is
    one; `replied_author_id` is None where nobody knows to whom. `has_more`: it brings what may be text,
    besides `text`, which is as it was typed.
    """

    author_id: int
    is_bot: bool
    is_webhook: bool
    is_ordinary: bool
    is_direct: bool
    mentioned_user_ids: frozenset[int] = frozenset()
    mentioned_role_ids: frozenset[int] = frozenset()
    replied_author_id: int | None = None
    text: str = ""
    names_others: bool = False
    is_reply: bool = False
    has_more: bool = False


def outside_quotes(content: str) -> str:
    """Return `content` without quoted lines and code: who quotes a mention of us does not speak to us."""
    return _QUOTED.sub(" ", content)


def is_from_a_person(incoming: Incoming) -> bool:
    """Tell whether a person wrote this, not a bot, a webhook or the system."""
    return not incoming.is_bot and not incoming.is_webhook and incoming.is_ordinary


def is_for_us(incoming: Incoming, bot: Bot) -> bool:
    """Tell whether a person speaks to us: by mention, by a reply to us, or directly."""
    if not is_from_a_person(incoming) or incoming.author_id == bot.user_id:
        return False
    return (
        incoming.is_direct
        or bot.user_id in incoming.mentioned_user_ids
        or (bot.managed_role_id is not None and bot.managed_role_id in incoming.mentioned_role_ids)
        or incoming.replied_author_id == bot.user_id
    )


def is_for_anybody(incoming: Incoming, bot: Bot, present: Iterable[str] = ()) -> bool:
    """Tell whether a message where every message is answered is a question that is meant for nobody else.

    `present`: names of the others who write there.
    """
    return (
        is_from_a_person(incoming)
        and not incoming.names_others
        and (not incoming.is_reply or incoming.replied_author_id in (bot.user_id, incoming.author_id))
        and (incoming.has_more or has_words(incoming.text))
        and _COMMAND.match(incoming.text) is None
        and not _calls_somebody(incoming.text, bot, present)
    )


def has_words(text: str) -> bool:
    """Tell whether a text says something: emoji and links alone do not, a lone question mark does."""
    return any(c.isalnum() or c in "?\uff1f" for c in _WORDLESS.sub("", text))


def _calls_somebody(text: str, bot: Bot, present: Iterable[str]) -> bool:
    """Tell whether a text speaks to somebody by name: `@Bob …`, `Bob, …` or `…, Bob?`."""
    said, ours = text.strip().casefold(), _short_names(bot.name)
    call = _CALL.match(said)
    if call is not None and not any(call["name"].startswith(name) for name in ours):
        return True
    ending = said.rstrip(".!?\u2026 ")
    names = {short for name in present for short in _short_names(name)} - ours
    return any(
        re.match(rf"{re.escape(name)}\s*[,:]", said) or re.search(rf",\s*{re.escape(name)}\Z", ending)
        for name in names
    )


def _short_names(name: str) -> set[str]:
    """Return how people call somebody: by the whole name or its first word."""
    whole = " ".join(name.casefold().split())
    return {short for short in (whole, whole.partition(" ")[0]) if len(short) >= _MIN_NAME_CHARS}


def readable(content: str, bot: Bot, names: Names) -> str:
    """Return what a person reads: our own mention at either end gone, others and emoji as names, times."""
    text = _strip_own_mentions(content, bot)
    return _TOKEN.sub(lambda match: _name_of(match, bot, names), text).strip()


def _strip_own_mentions(content: str, bot: Bot) -> str:
    ids = f"@!?{bot.user_id}" if bot.managed_role_id is None else f"@!?{bot.user_id}|@&{bot.managed_role_id}"
    leading = re.compile(rf"^\s*(?:<(?:{ids})>[\s,:]*)+")
    trailing = re.compile(rf"(?:\s*<(?:{ids})>)+\s*$")
    return trailing.sub("", leading.sub("", content))


def _name_of(match: re.Match[str], bot: Bot, names: Names) -> str:
    if user := match["user"]:
        known = bot.name if int(user) == bot.user_id else names.users.get(int(user))
        return f"@{label(known or 'someone')}"
    if role := match["role"]:
        known = bot.name if int(role) == bot.managed_role_id else names.roles.get(int(role))
        return f"@{label(known or 'a role')}"
    if channel := match["channel"]:
        return f"#{label(names.channels.get(int(channel)) or 'a channel')}"
    if emoji := match["emoji"]:
        return f":{emoji}:"
    if command := match["command"]:
        return f"/{command}"
    return _time_of(match)


def _time_of(match: re.Match[str]) -> str:
    """Return the time that a reader sees, in UTC; as it is written if there is no such time."""
    try:
        at = _EPOCH + timedelta(seconds=int(match["time"]))
    except OverflowError:
        return match[0]
    return at.strftime(_TIMES.get(match["style"] or "f", "%Y-%m-%d %H:%M UTC"))


def label(name: str, max_chars: int = MAX_LABEL_CHARS) -> str:
    """Return `name` fit to stand before a message: one line, none of ``<>[]|:``, at most `max_chars`.

    Without those characters it can neither open a control tag of a chat format nor end the label early.
    """
    kept = "".join(" " if c.isspace() else c for c in name if _may_stand_in_label(c))
    short = " ".join(kept.split())[:max_chars].rstrip()
    return short or FALLBACK_LABEL


def _may_stand_in_label(character: str) -> bool:
    if character in _LABEL_FORBIDDEN:
        return False
    return character.isspace() or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn"}
