"""What people set for a conversation or a server. Knows neither which keys there are nor what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from storage import scopes
from storage.backend import Within
from storage.database import Database, act
from storage.types import storable, to_milliseconds

Setting = str | int | float | bool | Sequence[str | int]

_SET = """
INSERT INTO {table} ({owner}, key, value, by_user_id, changed_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT ({owner}, key) DO UPDATE
SET value = excluded.value, by_user_id = excluded.by_user_id, changed_at = excluded.changed_at"""
_CLEAR = """
DELETE FROM {table} WHERE {owner} = ?1
AND (CAST(?2 AS TEXT) IS NULL OR key = ?2) AND (CAST(?3 AS TEXT) IS NULL OR key <> ?3) RETURNING key"""
_COPY = """
INSERT INTO {table} ({owner}, key, value, by_user_id, changed_at)
SELECT ?2, key, value, by_user_id, changed_at FROM {table} WHERE {owner} = ?1 ON CONFLICT DO NOTHING"""
_ALL = "SELECT key, value FROM {table} WHERE {owner} = ? ORDER BY key"


class SettingsStore:
    """The settings of conversations. A reset of a conversation leaves them."""

    _TABLE, _OWNER = "settings", "conversation_id"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._set, self._clear, self._copy, self._all = (
            sql.format(table=self._TABLE, owner=self._OWNER) for sql in (_SET, _CLEAR, _COPY, _ALL)
        )

    async def all(self, owner_id: int) -> dict[str, Setting]:
        """Return what is set, by key."""
        rows = await self._database.fetch_all(self._all, (owner_id,))
        return {row["key"]: json.loads(row["value"]) for row in rows}

    async def set(self, owner_id: int, key: str, value: Setting, *, by_user_id: int, at: datetime) -> None:
        """Set one value and record who did it. Raises what `set_all` raises."""
        await self.set_all(owner_id, {key: value}, by_user_id=by_user_id, at=at)

    @act
    async def set_all(
        self, owner_id: int, values: Mapping[str, Setting | None], *, by_user_id: int, at: datetime
    ) -> None:
        """Set several values, or remove those that are None, all or none of them.

        Raises `NotFoundError` for an unknown conversation, `ValueError` for a number that is not finite.
        """
        encoded = {
            key: None if value is None else json.dumps(_storable(value), allow_nan=False)
            for key, value in values.items()
        }
        async with self._database.transaction(self._within(owner_id)) as transaction:
            for key, text in encoded.items():
                if text is None:
                    await transaction.fetch_all(self._clear, (owner_id, key, None))
                else:
                    params = (owner_id, key, text, by_user_id, to_milliseconds(at))
                    await transaction.fetch_all(self._set, params)

    @act
    async def copy(self, from_id: int, to_id: int) -> None:
        """Set what is set for one owner for another one too, where that has set nothing."""
        async with self._database.transaction() as transaction:
            await transaction.fetch_all(self._copy, (from_id, to_id))

    @act
    async def clear(self, owner_id: int, key: str | None, *, keep: str | None = None) -> int:
        """Remove one setting, or with `key` None all but `keep`; return how many there were."""
        async with self._database.transaction(self._within(owner_id)) as transaction:
            return len(await transaction.fetch_all(self._clear, (owner_id, key, keep)))

    def _within(self, owner_id: int) -> Within | None:
        return scopes.conversation(owner_id)


class ServerSettingsStore(SettingsStore):
    """The same for servers."""

    _TABLE, _OWNER = "server_settings", "guild_id"

    def _within(self, owner_id: int) -> Within | None:  # noqa: ARG002 - a server is no conversation
        return None


def _storable(value: Setting) -> Setting:
    return storable(value) if isinstance(value, str) else value
