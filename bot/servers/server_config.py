"""What a server may set: the settings there are, what each may hold, and what holds without one. Pure.

Knows nothing of where settings are stored, nor of Discord.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bot.errors import ChatError, ParameterError
from bot.language.phrases import LANGUAGES, phrase
from bot.parameters import MAX_SYSTEM_PROMPT_CHARS, find_parameter, written_parameters
from bot.safety.lists import MAX_PATTERNS, PatternError, check_pattern

MAX_IDS = 25
"""As many as Discord's menus let one choose."""
MAX_WORDS = 200
MAX_WORD_CHARS = 60
MAX_LIST_CHARS = 4000
"""As many as a field of a form on Discord takes."""
MAX_PER_MINUTE = 1000
WAITS_S = range(5, 3601)
"""Seconds after which somebody may be notified."""

Stored = str | int | float | bool | list[str] | list[int]


class SettingError(ChatError):
    """A setting cannot be so. The text is a sentence for who set it."""


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
    checked in time. free_channels: where every message is answered, without a mention. thread_channels: the
    channels, and categories of channels, where each question gets a thread. uses_embeds: whether
    answers are shown as embeds. hides_previews: whether links in answers are shown without a preview.
    shows_thoughts: whether what a model thought is shown below its answer, behind a spoiler. sums_up: whether
    what a model no longer sees of a conversation is summed up for it, if the operator has that done.
    reads_along: whether a model is told what people said in a channel before a question.
    answer_defaults: parameters of answers, over the operator's. system_prompt: what the model is told first
    where a conversation sets nothing. language: a code of `bot.language`; None leaves what Discord says.
    notify_after_s: whoever asked is notified of an answer that took longer; None is never. proxies: bots of
    which we answer what they post for members, as plural systems do.
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
    free_channels: frozenset[int] = frozenset()
    uses_embeds: bool = False
    hides_previews: bool = True
    shows_thoughts: bool = False
    thread_channels: frozenset[int] = frozenset()
    sums_up: bool = True
    reads_along: bool = False
    answer_defaults: tuple[tuple[str, int | float], ...] = ()
    system_prompt: str | None = None
    language: str | None = None
    notify_after_s: int | None = None
    proxies: frozenset[int] = frozenset()

    def with_value(self, name: str, value: object) -> ServerConfig:
        """Return the settings with one of them changed. Raises `SettingError`."""
        return dataclasses.replace(self, **{name: _READERS[name](value)})

    def stored(self, name: str) -> Stored | None:
        """Return the value of a setting as it is stored; None where it is the default."""
        value = getattr(self, name)
        if value == getattr(_DEFAULT, name):
            return None
        if isinstance(value, frozenset):
            return sorted(value)
        if name == "answer_defaults":
            return [f"{key}={text}" for key, text in written_parameters(value).items()]
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, StrEnum) else value


def read_config(stored: Mapping[str, object]) -> ServerConfig:
    """Return what is stored as settings; what is unknown or no longer allowed is left out."""
    config = _DEFAULT
    for name in stored.keys() & _READERS.keys():
        try:
            config = config.with_value(name, stored[name])
        except SettingError:
            continue
    return config


def _ids(value: object) -> frozenset[int]:
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(type(item) is int for item in value):
        raise SettingError(phrase("config.bad_choice"))
    if len(value) > MAX_IDS:
        raise SettingError(phrase("config.bad_choice"))
    return frozenset(value)


def _id(value: object) -> int | None:
    if value is not None and type(value) is not int:
        raise SettingError(phrase("config.bad_choice"))
    return value


def _per_minute(value: object) -> int | None:
    if value is not None and (type(value) is not int or not 1 <= value <= MAX_PER_MINUTE):
        raise SettingError(phrase("config.bad_limit"))
    return value


def _wait_s(value: object) -> int | None:
    if value is not None and (type(value) is not int or value not in WAITS_S):
        raise SettingError(phrase("config.bad_wait", low=WAITS_S.start, high=WAITS_S.stop - 1))
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingError(phrase("config.bad_choice"))
    return value


def _age_restricted(value: object) -> AgeRestricted:
    try:
        return AgeRestricted(str(value))
    except ValueError:
        raise SettingError(phrase("config.bad_choice")) from None


def _texts(value: object, max_num: int, check: Callable[[str], str]) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise SettingError(phrase("config.bad_choice"))
    texts = tuple(dict.fromkeys(text for item in value if (text := item.strip())))
    if len(texts) > max_num or sum(len(text) + 1 for text in texts) > MAX_LIST_CHARS:
        raise SettingError(phrase("config.list_too_long", allowed=max_num, characters=MAX_LIST_CHARS))
    return tuple(check(text) for text in texts)


def _check_word(word: str) -> str:
    if len(word) > MAX_WORD_CHARS:
        raise SettingError(phrase("config.word_too_long", word=f"{word[:20]}…", allowed=MAX_WORD_CHARS))
    return word


def _words(value: object) -> tuple[str, ...]:
    return _texts(value, MAX_WORDS, _check_word)


def _patterns(value: object) -> tuple[str, ...]:
    return _texts(value, MAX_PATTERNS, _check_pattern)


def _check_pattern(pattern: str) -> str:
    try:
        return check_pattern(pattern)
    except PatternError as error:
        shown = f"{pattern[:80]}…" if len(pattern) > 80 else pattern
        raise SettingError(
            phrase(f"config.pattern_{error.reason}", pattern=shown.replace("`", "'"))
        ) from None


def _parameters(value: object) -> tuple[tuple[str, int | float], ...]:
    """Read parameters written as `temperature=0.5`. The operator's limits are checked where they are used."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise SettingError(phrase("config.bad_choice"))
    pairs = [item.partition("=") for item in value]
    try:
        return tuple((name, find_parameter(name).parse(text)) for name, _, text in pairs)
    except ParameterError as error:
        raise SettingError(error.sentence) from error


def _system_prompt(value: object) -> str | None:
    """Read a system prompt. What it costs the model's context is checked where that is known."""
    if value is not None and (not isinstance(value, str) or len(value) > MAX_SYSTEM_PROMPT_CHARS):
        raise SettingError(phrase("config.bad_choice"))
    return value or None


def _language(value: object) -> str | None:
    if value is not None and value not in LANGUAGES:
        raise SettingError(phrase("config.bad_choice"))
    return None if value is None else str(value)


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
    "free_channels": _ids,
    "thread_channels": _ids,
    "uses_embeds": _flag,
    "hides_previews": _flag,
    "shows_thoughts": _flag,
    "sums_up": _flag,
    "reads_along": _flag,
    "answer_defaults": _parameters,
    "system_prompt": _system_prompt,
    "language": _language,
    "notify_after_s": _wait_s,
    "proxies": _ids,
}
