"""The settings of all servers: read once, kept, in force once they are changed; and notices to moderators.

A notice holds ids and numbers, never what anybody wrote. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto

from bot.language.phrases import phrase
from bot.servers.server_config import ServerConfig, read_config
from storage.settings import ServerSettingsStore

_log = logging.getLogger(__name__)

MAX_KEPT = 10_000
"""Servers whose settings are kept in memory."""


class Servers:
    """Reads and changes what servers set; moderators have a notice of every change."""

    def __init__(self, store: ServerSettingsStore, notices: Notices, *, max_kept: int = MAX_KEPT) -> None:
        self._store = store
        self._notices = notices
        self._max_kept = max_kept
        self.on_changed: Callable[[int], None] = lambda _: None
        """Called with the server after each change."""
        self._kept: OrderedDict[int, ServerConfig] = OrderedDict()
        # So that what is read before a change is never kept after it.
        self._lock = asyncio.Lock()

    async def config(self, guild_id: int | None) -> ServerConfig:
        """Return a server's settings; a direct message (None) has the defaults. Raises `StorageError`."""
        if guild_id is None:
            return ServerConfig()
        kept = self._kept.get(guild_id)
        if kept is not None:
            self._kept.move_to_end(guild_id)
            return kept
        async with self._lock:
            return await self._read(guild_id)

    async def change(self, guild_id: int, changes: Mapping[str, object], *, by_user_id: int) -> ServerConfig:
        """Change settings, all or none, and return what holds. Raises `SettingError` or `StorageError`.

        A setting that is as it was is not a change.
        """
        async with self._lock:
            before = await self._read(guild_id)
            # In a thread: patterns are compiled and tried.
            config = await asyncio.to_thread(_changed, before, changes)
            changed = [name for name in changes if getattr(before, name) != getattr(config, name)]
            if not changed:
                return config
            await self._store.set_all(
                guild_id,
                {name: config.stored(name) for name in changed},
                by_user_id=by_user_id,
                at=datetime.now(UTC),
            )
            self._kept[guild_id] = config
        self.on_changed(guild_id)
        _log.info("Server %d: %s changed by %d", guild_id, ", ".join(changed), by_user_id)
        for name in changed:
            called = phrase(f"setting_names.{name}")
            self._notices.post(
                Notice(guild_id, NoticeKind.CONFIG_CHANGED, by_user_id=by_user_id, detail=called)
            )
        return config

    def known(self, guild_id: int) -> ServerConfig:
        """Return a server's settings as far as they were read already, else the defaults."""
        return self._kept.get(guild_id) or ServerConfig()

    def forget(self, guild_id: int) -> None:
        """Read a server's settings anew when they are next asked for: they were deleted."""
        self._kept.pop(guild_id, None)

    async def _read(self, guild_id: int) -> ServerConfig:
        if guild_id not in self._kept:
            self._kept[guild_id] = read_config(await self._store.all(guild_id))
            if len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)
        return self._kept[guild_id]


def _changed(config: ServerConfig, changes: Mapping[str, object]) -> ServerConfig:
    for name, value in changes.items():
        config = config.with_value(name, value)
    return config


class Notices:
    """Passes notices on to the one who listens, if anybody does."""

    def __init__(self) -> None:
        self._listener: Callable[[Notice], None] | None = None

    def listen(self, listener: Callable[[Notice], None]) -> None:
        """Send every notice from now on to `listener`, which must not block."""
        self._listener = listener

    def post(self, notice: Notice) -> None:
        """Pass a notice on."""
        try:
            if self._listener is not None:
                self._listener(notice)
        except Exception:  # noqa: BLE001 - what happened has happened, whatever is made of it
            _log.exception("A notice of %s was not taken up", notice.kind)


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that happened in a server.

    by_user_id: who did it. about_user_id: to whom, or who had asked. num: how many messages. detail: the name
    of a setting or the link to a message, as `kind` needs it.
    """

    guild_id: int
    kind: NoticeKind
    by_user_id: int | None = None
    about_user_id: int | None = None
    channel_id: int | None = None
    num: int = 0
    detail: str = ""
    reset_id: int | None = None


class NoticeKind(Enum):
    """What happened."""

    RESET = auto()
    RESET_UNDONE = auto()
    BLOCKED = auto()
    UNBLOCKED = auto()
    CONFIG_CHANGED = auto()
    QUESTION_REFUSED = auto()
    """By the server's lists."""
    QUESTION_UNCHECKED = auto()
    """The lists took too long."""
    QUESTION_UNSAFE = auto()
    """By the moderation model."""
    ANSWER_WITHHELD = auto()
    REPORTED = auto()
