"""The overrides people set for a conversation. Knows neither which keys there are nor what they may hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from storage.database import Database
from storage.rows import storable, to_milliseconds

Setting = str | int | float

_SET = """
INSERT INTO settings (conversation_id, key, value, by_user_id, changed_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (conversation_id, key) DO UPDATE
SET value = excluded.value, by_user_id = excluded.by_user_id, changed_at = excluded.changed_at"""


class SettingsStore:
    """Settings by conversation and key. A reset of the conversation leaves them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self, conversation_id: int) -> dict[str, Setting]:
        """Return what is set for a conversation, by key."""
        rows = await self._database.fetch_all(
            "SELECT key, value FROM settings WHERE conversation_id = ? ORDER BY key", (conversation_id,)
        )
        return {row["key"]: json.loads(row["value"]) for row in rows}

    async def set(
        self, conversation_id: int, key: str, value: Setting, *, by_user_id: int, at: datetime
    ) -> None:
        """Set one value and record who did it.

        Raises `NotFoundError` for an unknown conversation, `ValueError` for a number that is not finite.
        """
        encoded = json.dumps(storable(value) if isinstance(value, str) else value, allow_nan=False)
        params = (conversation_id, key, encoded, by_user_id, to_milliseconds(at))
        async with self._database.transaction() as transaction:
            await transaction.fetch_all(_SET, params)

    async def clear(self, conversation_id: int, key: str | None) -> int:
        """Remove one setting, or all of them with `key` None; return how many there were."""
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch_all(
                "DELETE FROM settings WHERE conversation_id = ?1 AND (?2 IS NULL OR key = ?2) RETURNING key",
                (conversation_id, key),
            )
        return len(rows)


ServerSetting = str | int | float | bool | Sequence[str | int]

_SET_SERVERS = """
INSERT INTO server_settings (guild_id, key, value, by_user_id, changed_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (guild_id, key) DO UPDATE
SET value = excluded.value, by_user_id = excluded.by_user_id, changed_at = excluded.changed_at"""

_CLEAR = "DELETE FROM server_settings WHERE guild_id = ?1 AND (?2 IS NULL OR key = ?2) RETURNING key"


class ServerSettingsStore:
    """Settings by server and key; values are JSON scalars or lists of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self, guild_id: int) -> dict[str, ServerSetting]:
        """Return what is set for a server, by key."""
        rows = await self._database.fetch_all(
            "SELECT key, value FROM server_settings WHERE guild_id = ? ORDER BY key", (guild_id,)
        )
        return {row["key"]: json.loads(row["value"]) for row in rows}

    async def set(
        self, guild_id: int, key: str, value: ServerSetting, *, by_user_id: int, at: datetime
    ) -> None:
        """Set one value and record who did it. Raises `ValueError` for a number that is not finite."""
        await self.set_all(guild_id, {key: value}, by_user_id=by_user_id, at=at)

    async def set_all(
        self, guild_id: int, values: Mapping[str, ServerSetting | None], *, by_user_id: int, at: datetime
    ) -> None:
        """Set several values, or remove those that are None, all or none of them."""
        # ASCII: a lone surrogate would otherwise be refused by SQLite.
        encoded = {
            key: None if value is None else json.dumps(value, allow_nan=False)
            for key, value in values.items()
        }
        async with self._database.transaction() as transaction:
            for key, text in encoded.items():
                if text is None:
                    await transaction.fetch_all(_CLEAR, (guild_id, key))
                else:
                    await transaction.fetch_all(
                        _SET_SERVERS, (guild_id, key, text, by_user_id, to_milliseconds(at))
                    )

    async def clear(self, guild_id: int, key: str | None) -> int:
        """Remove one setting, or all of them with `key` None; return how many there were."""
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch_all(_CLEAR, (guild_id, key))
        return len(rows)
