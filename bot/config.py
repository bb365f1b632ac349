"""The settings: what was set, where it came from, whether it is right, and what may change while we run.

Reads a `.env` file and the environment, which wins, into one frozen `Settings`. Reports every bad value at
once. Knows nothing of Discord, models or databases, nor of how a setting takes effect: a path is only a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.config_keys import CHAT_KEYS, KEYS
from bot.fleet.choice import ShardChoice
from bot.parameters import ChatParameters, Guidance, GuidanceChoice
from bot.privacy import Keeping
from bot.servers.rates import Allowance
from engine.configuring.keys import model_settings
from engine.configuring.reading import ConfigError, read_settings
from engine.hub.address import HubAddress
from storage.address import Location

_log = logging.getLogger(__name__)

LIVE = frozenset(
    {
        *("SYSTEM_PROMPT", "GUIDANCE", "GUIDANCE_JOIN", "LIMITS", *(key.name for key in CHAT_KEYS)),
        *("RETENTION_DAYS", "GRACE_DAYS", "LOG_LEVEL"),
    }
)
"""Keys that take effect without a restart."""


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
    database: Location
    shards: ShardChoice
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
    models: Path | Mapping[str, tuple[str, ...]] | None
    engine: tuple[str, ...]
    engine_key: str | None = field(repr=False)
    engine_replicas: tuple[str, ...]
    operator_ids: frozenset[int]
    chat: ChatParameters
    moderation_model: Path | tuple[str, ...] | None
    moderation_refuses_unchecked: bool
    allowance: Allowance
    keeping: Keeping
    metrics_host: str
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
    read = read_settings(KEYS, environment, env_file)
    _check_together(read.values)
    chosen = frozenset(key.name.lower() for key in CHAT_KEYS if key.name in read.given)
    return _settings(read.values, chosen, read.hints)


def _check_together(values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for settings that do not go together."""
    is_elsewhere, models = values["ENGINE"] is not None, values["MODELS"]
    if is_elsewhere and values["MODEL"] is not None:
        raise ConfigError(
            "MODEL and ENGINE are both set, but with ENGINE the servers have the model. Remove one of them."
        )
    if models is not None and is_elsewhere is isinstance(models, Path):
        raise ConfigError("MODELS must be names with addresses if ENGINE is set, and otherwise a folder.")


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
        _log.info("Settings reloaded; changed: %s", ", ".join(live) or "none")
        if others:
            _log.warning("These changes need a restart: %s", ", ".join(others))


def ignore_early_signals() -> None:
    """Let the signal to reload not end the process, which it does by default, until a `Reloader` listens."""
    with contextlib.suppress(AttributeError):  # Windows has no such signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _settings(values: Mapping[str, Any], chosen: frozenset[str], hints: tuple[str, ...]) -> Settings:
    return Settings(
        **model_settings(values),
        discord_token=values["DISCORD_TOKEN"],
        database=values["DATABASE"],
        shards=values["SHARDS"] or ShardChoice(),
        works_ahead=values["WORK_AHEAD"],
        summaries=values["SUMMARIES"],
        models=values["MODELS"],
        engine=values["ENGINE"] or (),
        engine_key=values["ENGINE_KEY"],
        engine_replicas=values["ENGINE_REPLICAS"] or (),
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
        metrics_host=values["METRICS_HOST"],
        metrics_port=values["METRICS_PORT"],
        shutdown_grace_s=values["SHUTDOWN_GRACE"],
        log_level=logging.getLevelNamesMapping()[values["LOG_LEVEL"].upper()],
        playground_port=values["PLAYGROUND_PORT"],
        logs_json=values["LOG_FORMAT"] == "json",
        values=values,
        hints=hints,
    )


def _with(current: Settings, new: Settings, live: list[str]) -> Settings:
    """Return `current` with the live parts of `new`."""
    return dataclasses.replace(
        current,
        chat=new.chat,
        keeping=new.keeping,
        log_level=new.log_level,
        values={**current.values, **{key: new.values[key] for key in live}},
    )
