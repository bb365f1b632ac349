"""What is recorded for moderators: whom they blocked, by whom and when, and who reported which answer.

Knows nothing of what a block does, nor of what the answers say.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from storage.database import Database, act
from storage.types import from_milliseconds, to_milliseconds

_INSERT_BLOCK = """
INSERT INTO blocks (guild_id, user_id, by_user_id, blocked_at) VALUES (?, ?, ?, ?)
ON CONFLICT (guild_id, user_id) DO NOTHING RETURNING user_id"""


@dataclass(frozen=True, slots=True)
class Block:
    """One person who is blocked on one server."""

    user_id: int
    by_user_id: int
    blocked_at: datetime


class Blocks:
    """Blocked people, by server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def is_blocked(self, guild_id: int, user_id: int) -> bool:
        """Tell whether a person is blocked."""
        row = await self._database.fetch_one(
            "SELECT 1 FROM blocks WHERE guild_id = ? AND user_id = ?", (guild_id, user_id)
        )
        return row is not None

    async def blocked(self, guild_id: int, user_ids: Collection[int]) -> set[int]:
        """Return those of some people who are blocked on a server."""
        marks = ", ".join("?" * len(user_ids))
        sql = f"SELECT user_id FROM blocks WHERE guild_id = ? AND user_id IN ({marks})"  # noqa: S608 - marks
        return {row["user_id"] for row in await self._database.fetch_all(sql, (guild_id, *user_ids))}

    @act
    async def add(self, guild_id: int, user_id: int, *, by_user_id: int, at: datetime) -> bool:
        """Block a person; return False if somebody had done so already, which then stays recorded."""
        params = (guild_id, user_id, by_user_id, to_milliseconds(at))
        async with self._database.transaction() as transaction:
            return bool(await transaction.fetch_all(_INSERT_BLOCK, params))

    @act
    async def remove(self, guild_id: int, user_id: int) -> bool:
        """Let a person ask again; return whether they were blocked."""
        async with self._database.transaction() as transaction:
            return bool(
                await transaction.fetch_all(
                    "DELETE FROM blocks WHERE guild_id = ? AND user_id = ? RETURNING user_id",
                    (guild_id, user_id),
                )
            )

    async def newest(self, guild_id: int, limit: int) -> list[Block]:
        """Return the people of a server blocked last, the newest first."""
        rows = await self._database.fetch_all(
            "SELECT * FROM blocks WHERE guild_id = ? ORDER BY blocked_at DESC, user_id LIMIT ?",
            (guild_id, limit),
        )
        return [
            Block(row["user_id"], row["by_user_id"], from_milliseconds(row["blocked_at"])) for row in rows
        ]


_INSERT_REPORT = """
INSERT INTO reports (answer_id, by_user_id, reported_at) VALUES (?, ?, ?)
ON CONFLICT (answer_id, by_user_id) DO NOTHING RETURNING answer_id"""


class Reports:
    """Reports, one a person and answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @act
    async def add(self, answer_id: int, *, by_user_id: int, at: datetime) -> bool:
        """Record a report; return False if this person had reported this answer already."""
        params = (answer_id, by_user_id, to_milliseconds(at))
        async with self._database.transaction() as transaction:
            return bool(await transaction.fetch_all(_INSERT_REPORT, params))
