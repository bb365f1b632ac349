"""Reads settings from a `.env` file and the environment, which wins, and reports every bad value at once.

Knows neither which settings there are nor what they do.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream

from engine.configuring.keys import Key
from engine.errors import EngineError

_MAX_SHOWN_CHARACTERS = 60
"""Of a bad value."""


class ConfigError(EngineError):
    """Some settings are wrong. The message names all of them, with key, value and what is allowed."""


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What was read: a value for each key, the names of those that were given, and `hints` about others.

    hints: sentences about keys in `.env` that look like misspelt ones.
    """

    values: Mapping[str, Any]
    given: frozenset[str]
    hints: tuple[str, ...] = ()


def read_settings(keys: Sequence[Key], environment: Mapping[str, str], env_file: Path) -> ReadSettings:
    """Read `keys` from `env_file`, which need not exist, and from `environment`, which wins.

    An empty value is as good as none. Raises `ConfigError` with everything that is wrong.
    """
    written, problems = _read_env_file(env_file)
    values: dict[str, Any] = {}
    given = set()
    for key in keys:
        value, origin = environment.get(key.name, "").strip(), "environment"
        if not value:
            value, origin = written.get(key.name, "").strip(), str(env_file)
        if value:
            given.add(key.name)
        try:
            values[key.name] = key.parse(value or key.default) if value or key.default else None
        except ValueError as error:
            problems.append(f"{key.name}={_shown(key, value)} (from {origin}) {error}.")
    hints = _hints(keys, written, env_file)
    if problems:
        raise ConfigError(_report(problems + list(hints)))
    return ReadSettings(values, frozenset(given), hints)


def _read_env_file(env_file: Path) -> tuple[dict[str, str], list[str]]:
    """Return what `env_file` sets, without replacing `$…` in it, and what is wrong with its lines."""
    try:
        content = env_file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}, []
    except UnicodeDecodeError:
        raise ConfigError(f"{env_file} is not UTF-8 text: save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{env_file} cannot be read: {error.strerror}.") from None
    values: dict[str, str] = {}
    problems = []
    for binding in parse_stream(io.StringIO(content)):
        if binding.error:
            problems.append(f"Line {binding.original.line} of {env_file} is not of the form KEY=value.")
        elif binding.key:
            values[binding.key] = binding.value or ""
    return values, problems


def _hints(keys: Sequence[Key], written: Mapping[str, str], env_file: Path) -> tuple[str, ...]:
    """Return a sentence for each key of the file that is none of ours but much like one.

    Only for the file: the environment is full of other programs' variables.
    """
    names = [key.name for key in keys]
    hints = []
    for name in written:
        if name in names:
            continue
        close = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.75)
        if close:
            hints.append(f"{name} in {env_file} is not a setting: did you mean {close[0]}?")
    return tuple(hints)


def _shown(key: Key, value: str) -> str:
    """Return a bad value on one line, cut short; a secret is never shown."""
    if key.is_secret:
        return "(hidden)"
    value = key.shown(value)
    shown = value if len(value) <= _MAX_SHOWN_CHARACTERS else value[: _MAX_SHOWN_CHARACTERS - 1] + "…"
    return shown if shown.isprintable() else repr(shown)


def _report(problems: list[str]) -> str:
    """Return one text for all problems: a single sentence, or a list of them."""
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} things are wrong with the settings:", *(f"  {p}" for p in problems)])
