"""The settings of all servers: read once, kept, and in force as soon as they are changed.

Owns the cache over the store and tells whoever asked for it what changed. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from bot.servers.server_config import ServerConfig, read_config
from storage.settings import ServerSettingsStore

_log = logging.getLogger(__name__)

MAX_KEPT = 10_000
"""Servers whose settings are kept in memory."""

OnChange = Callable[[int, str, int], None]
"""Told the server, the name of a setting that changed, and who changed it."""


class Servers:
    """Reads and changes what servers set. `on_change` is told of every change."""

    def __init__(
        self,
        store: ServerSettingsStore,
        on_change: OnChange = lambda *_: None,
        *,
        max_kept: int = MAX_KEPT,
    ) -> None:
        self._store = store
        self._on_change = on_change
        self._max_kept = max_kept
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
        _log.info("Server %d: %s changed by %d", guild_id, ", ".join(changed), by_user_id)
        for name in changed:
            self._tell(guild_id, name, by_user_id)
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

    def _tell(self, guild_id: int, name: str, by_user_id: int) -> None:
        try:
            self._on_change(guild_id, name, by_user_id)
        except Exception:  # noqa: BLE001 - the setting is changed, whatever is made of it
            _log.exception("A change of %s was not taken up", name)


def _changed(config: ServerConfig, changes: Mapping[str, object]) -> ServerConfig:
    for name, value in changes.items():
        config = config.with_value(name, value)
    return config
