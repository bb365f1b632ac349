"""Settings read anew while the bot runs: what can change at once does, the rest is said.

A file that is wrong changes nothing. Knows nothing of how a setting takes effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
from collections.abc import Callable

from bot.config import ConfigError, Settings
from bot.config_keys import CHAT_KEYS

_log = logging.getLogger(__name__)

LIVE = frozenset(
    {
        *("SYSTEM_PROMPT", "GUIDANCE", "GUIDANCE_JOIN", "LIMITS"),
        *(key.name for key in CHAT_KEYS),
        *("RETENTION_DAYS", "GRACE_DAYS", "LOG_LEVEL"),
    }
)
"""Keys that take effect without a restart."""


def ignore_early_signals() -> None:
    """Let the signal to reload not end the process, which it does by default, until a `Reloader` listens."""
    with contextlib.suppress(AttributeError):  # Windows has no such signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class Reloader:
    """Reads with `read`, and hands to `apply` settings in which only live keys differ from those in force."""

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


def _with(current: Settings, new: Settings, live: list[str]) -> Settings:
    """Return `current` with the live parts of `new`."""
    return dataclasses.replace(
        current,
        chat=new.chat,
        keeping=new.keeping,
        log_level=new.log_level,
        values={**current.values, **{key: new.values[key] for key in live}},
    )
