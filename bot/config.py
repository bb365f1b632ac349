"""The settings: what was set, where it came from, whether it is right, and what may change while we run.

Reads a `.env` file and the environment, which wins, into one frozen `Settings`. Reports every bad value at
once. Knows nothing of Discord, models or databases, nor of how a setting takes effect: a path is only a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import io
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from dotenv.parser import parse_stream

from bot.config_keys import CHAT_KEYS, KEYS, Key
from bot.parameters import ChatParameters, Guidance, GuidanceChoice
from bot.privacy import Keeping
from bot.servers.rates import Allowance
from engine.hub.address import HubAddress

_log = logging.getLogger(__name__)

_MAX_SHOWN_CHARACTERS = 60
"""Of a bad value."""
LIVE = frozenset(
    {
        *("SYSTEM_PROMPT", "GUIDANCE", "GUIDANCE_JOIN", "LIMITS", *(key.name for key in CHAT_KEYS)),
        *("RETENTION_DAYS", "GRACE_DAYS", "LOG_LEVEL"),
    }
)
"""Keys that take effect without a restart."""


class ConfigError(Exception):
    """Some settings are wrong. The message names all of them, with key, value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator chose. `.env.example` says what 0 means."""

    discord_token: str | None = field(repr=False)
    model: Path | HubAddress | None
    hub_token: str | None = field(repr=False)
    hub_endpoint: str | None
    precision: str
    provider: str
    cache: Path
    database: Path
    threads: int
    max_concurrent: int
    context_tokens: int
    kv_cache_mb: int
    kv_disk_mb: int
    max_queue: int
    works_ahead: str
    summaries: str
    sees_all_messages: bool
    chat_template: str
    draft_model: Path | None
    models: Path | None
    operator_ids: frozenset[int]
    chat: ChatParameters
    moderation_model: Path | None
    moderation_refuses_unchecked: bool
    allowance: Allowance
    keeping: Keeping
    metrics_port: int
    shutdown_grace_s: int
    log_level: int
    playground_port: int
    logs_json: bool
    values: Mapping[str, Any] = field(repr=False, compare=False)
    """What each of `KEYS` was read as."""
    hints: tuple[str, ...] = ()
    """Sentences about keys in `.env` that look like misspelt ones."""


def load_settings(environment: Mapping[str, str], env_file: Path) -> Settings:
    """Read the settings from `env_file`, which need not exist, and from `environment`, which wins.

    An empty value is as good as none. Raises `ConfigError` with everything that is wrong.
    """
    written, problems = _read_env_file(env_file)
    values: dict[str, Any] = {}
    given = set()
    for key in KEYS:
        value, origin = environment.get(key.name, "").strip(), "environment"
        if not value:
            value, origin = written.get(key.name, "").strip(), str(env_file)
        if value:
            given.add(key)
        try:
            values[key.name] = key.parse(value or key.default) if value or key.default else None
        except ValueError as error:
            problems.append(f"{key.name}={_shown(key, value)} (from {origin}) {error}.")
    hints = _hints(written, env_file)
    if problems:
        raise ConfigError(_report(problems + list(hints)))
    chosen = frozenset(key.name.lower() for key in given.intersection(CHAT_KEYS))
    return _settings(values, chosen, hints)


class Reloader:
    """Reads the settings anew with `read`, and hands on to `apply` what can change at once.

    Of the settings that `apply` gets only live keys differ from those in force. Where anything is wrong with
    what was read, nothing changes.
    """

    def __init__(
        self, current: Settings, read: Callable[[], Settings], apply: Callable[[Settings], None]
    ) -> None:
        self._current = current
        self._read = read
        self._apply = apply

    def listen(self) -> None:
        """Reload whenever the process gets the signal SIGHUP. Call it on the event loop."""
        with contextlib.suppress(NotImplementedError, AttributeError):  # Windows has no such signal
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)

    def reload(self) -> None:
        """Read the settings anew; say in the log what came of it. Never raises `ConfigError`."""
        try:
            new = self._read()
        except ConfigError as error:
            _log.error("The settings stay as they were. %s", error)
            return
        changed = [key for key, value in new.values.items() if value != self._current.values.get(key)]
        live = [key for key in changed if key in LIVE]
        others = [key for key in changed if key not in LIVE]
        if live:
            self._current = _with(self._current, new, live)
            self._apply(self._current)
        _log.info("Settings read anew; changed: %s", ", ".join(live) or "none")
        if others:
            _log.warning("These changes need a restart: %s", ", ".join(others))


def ignore_early_signals() -> None:
    """Let the signal to reload not end the process, which it does by default, until a `Reloader` listens."""
    with contextlib.suppress(AttributeError):  # Windows has no such signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _settings(values: Mapping[str, Any], chosen: frozenset[str], hints: tuple[str, ...]) -> Settings:
    return Settings(
        discord_token=values["DISCORD_TOKEN"],
        model=values["MODEL"],
        hub_token=values["HF_TOKEN"],
        hub_endpoint=values["HF_ENDPOINT"],
        precision=values["PRECISION"],
        provider=values["PROVIDER"],
        cache=values["LLAMA_CACHE"] or platformdirs.user_cache_path("llamacord", appauthor=False),
        database=values["DATABASE"],
        threads=values["THREADS"],
        max_concurrent=values["MAX_CONCURRENT"],
        context_tokens=values["CONTEXT_TOKENS"],
        kv_cache_mb=values["KV_CACHE_MB"],
        kv_disk_mb=values["KV_DISK_MB"],
        max_queue=values["MAX_QUEUE"],
        works_ahead=values["WORK_AHEAD"],
        summaries=values["SUMMARIES"],
        chat_template=str(values["CHAT_TEMPLATE"] or ""),
        draft_model=values["DRAFT_MODEL"],
        models=values["MODELS"],
        operator_ids=values["OPERATOR_IDS"] or frozenset(),
        sees_all_messages=values["MESSAGE_CONTENT_INTENT"] == "on",
        chat=ChatParameters(
            system_prompt=values["SYSTEM_PROMPT"],
            guidance=Guidance(GuidanceChoice(values["GUIDANCE"]), is_kept=values["GUIDANCE_JOIN"] == "on"),
            limits=values["LIMITS"] or {},
            chosen=chosen,
        ).with_values({key.name.lower(): values[key.name] for key in CHAT_KEYS}),
        moderation_model=values["MODERATION_MODEL"],
        moderation_refuses_unchecked=values["MODERATION_UNSURE"] == "refuse",
        allowance=Allowance(values["USER_PER_MINUTE"], values["SERVER_PER_MINUTE"]),
        keeping=Keeping(values["RETENTION_DAYS"], values["GRACE_DAYS"]),
        metrics_port=values["METRICS_PORT"],
        shutdown_grace_s=values["SHUTDOWN_GRACE"],
        log_level=logging.getLevelNamesMapping()[values["LOG_LEVEL"].upper()],
        playground_port=values["PLAYGROUND_PORT"],
        logs_json=values["LOG_FORMAT"] == "json",
        values=values,
        hints=hints,
    )


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


def _hints(written: Mapping[str, str], env_file: Path) -> tuple[str, ...]:
    """Return a sentence for each key of the file that is none of ours but much like one.

    Only for the file: the environment is full of other programs' variables.
    """
    names = [key.name for key in KEYS]
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
    shown = value if len(value) <= _MAX_SHOWN_CHARACTERS else value[: _MAX_SHOWN_CHARACTERS - 1] + "…"
    return shown if shown.isprintable() else repr(shown)


def _report(problems: list[str]) -> str:
    """Return one text for all problems: a single sentence, or a list of them."""
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} things are wrong with the settings:", *(f"  {p}" for p in problems)])


def _with(current: Settings, new: Settings, live: list[str]) -> Settings:
    """Return `current` with the live parts of `new`."""
    return dataclasses.replace(
        current,
        chat=new.chat,
        keeping=new.keeping,
        log_level=new.log_level,
        values={**current.values, **{key: new.values[key] for key in live}},
    )
