"""What a server may set: the settings there are, what each may hold, and what holds without one. Pure.

Knows nothing of where settings are stored, nor of Discord.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bot.safety.patterns import MAX_PATTERNS, check_pattern

MAX_IDS = 25
"""As many as Discord's menus let one choose."""
MAX_WORDS = 200
MAX_WORD_CHARS = 60
MAX_PER_MINUTE = 1000

Stored = str | int | float | bool | list[str] | list[int]


class AgeRestricted(StrEnum):
    """Whether questions are answered in channels that Discord restricts by age."""

    ANYWHERE = "anywhere"
    NEVER = "never"
    ONLY = "only"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The settings of one server.

    allowed_channels, allowed_roles: where and whom we answer; empty is everywhere and everybody.
    user_per_minute, server_per_minute: None leaves the operator's limit. lists_everywhere: whether the lists
    hold in age-restricted channels too. refuses_unchecked: whether a text is refused that could not be
    checked in time.
    """

    allowed_channels: frozenset[int] = frozenset()
    allowed_roles: frozenset[int] = frozenset()
    log_channel: int | None = None
    age_restricted: AgeRestricted = AgeRestricted.ANYWHERE
    user_per_minute: int | None = None
    server_per_minute: int | None = None
    question_words: tuple[str, ...] = ()
    question_patterns: tuple[str, ...] = ()
    answer_words: tuple[str, ...] = ()
    answer_patterns: tuple[str, ...] = ()
    removes_invites: bool = True
    labels_answers: bool = False
    lists_everywhere: bool = True
    refuses_unchecked: bool = True

    def with_value(self, name: str, value: object) -> ServerConfig:
        """Return the settings with one of them changed. Raises `ValueError` with a sentence."""
        return dataclasses.replace(self, **{name: _READERS[name](value)})

    def stored(self, name: str) -> Stored | None:
        """Return the value of a setting as it is stored; None where it is the default."""
        value = getattr(self, name)
        if value == getattr(_DEFAULT, name):
            return None
        if isinstance(value, frozenset):
            return sorted(value)
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, StrEnum) else value


def read_config(stored: Mapping[str, object]) -> ServerConfig:
    """Return what is stored as settings; what is unknown or no longer allowed is left out."""
    config = _DEFAULT
    for name in stored.keys() & _READERS.keys():
        try:
            config = config.with_value(name, stored[name])
        except ValueError:
            continue
    return config


def _ids(value: object) -> frozenset[int]:
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(type(item) is int for item in value):
        raise ValueError("These must be channels or roles.")
    if len(value) > MAX_IDS:
        raise ValueError(f"At most {MAX_IDS} can be chosen.")
    return frozenset(value)


def _id(value: object) -> int | None:
    if value is not None and type(value) is not int:
        raise ValueError("This must be a channel.")
    return value


def _per_minute(value: object) -> int | None:
    if value is not None and (type(value) is not int or not 1 <= value <= MAX_PER_MINUTE):
        raise ValueError(f"A limit must be a whole number from 1 to {MAX_PER_MINUTE}, or empty for none.")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("This must be on or off.")
    return value


def _age_restricted(value: object) -> AgeRestricted:
    try:
        return AgeRestricted(str(value))
    except ValueError:
        raise ValueError("This must be anywhere, never or only.") from None


def _texts(value: object, max_num: int, check: Callable[[str], str]) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError("This must be a list of texts.")
    texts = tuple(dict.fromkeys(text for item in value if (text := item.strip())))
    if len(texts) > max_num:
        raise ValueError(f"A list may have {max_num} lines; this one has {len(texts)}.")
    return tuple(check(text) for text in texts)


def _check_word(word: str) -> str:
    if len(word) > MAX_WORD_CHARS:
        raise ValueError(f"A word may have {MAX_WORD_CHARS} characters; {word[:20]}… has {len(word)}.")
    return word


def _words(value: object) -> tuple[str, ...]:
    return _texts(value, MAX_WORDS, _check_word)


def _patterns(value: object) -> tuple[str, ...]:
    return _texts(value, MAX_PATTERNS, check_pattern)


_DEFAULT = ServerConfig()
_READERS: dict[str, Callable[[object], Any]] = {
    "allowed_channels": _ids,
    "allowed_roles": _ids,
    "log_channel": _id,
    "age_restricted": _age_restricted,
    "user_per_minute": _per_minute,
    "server_per_minute": _per_minute,
    "question_words": _words,
    "question_patterns": _patterns,
    "answer_words": _words,
    "answer_patterns": _patterns,
    "removes_invites": _flag,
    "labels_answers": _flag,
    "lists_everywhere": _flag,
    "refuses_unchecked": _flag,
}
