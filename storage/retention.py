"""What goes by itself: messages that are too old, and everything of servers and channels that are gone.

Deletes in small transactions. Knows neither how long anything is kept nor when that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from enum import StrEnum

from storage.database import Database, act
from storage.removals import note_removed
from storage.shards import EVERYTHING, Shards
from storage.types import to_milliseconds, utc_now

BATCH_SIZE = 200
"""Questions, or conversations, deleted in one transaction."""

# An answer that is being written keeps its question until it ended.
_DELETE_OLD = """
DELETE FROM messages WHERE id IN (
    SELECT id FROM messages AS old WHERE role = 'user' AND created_at < ? AND NOT EXISTS (
        SELECT 1 FROM messages AS answer WHERE answer.reply_to = old.id AND answer.state = 'pending')
    AND EXISTS (SELECT 1 FROM conversations WHERE conversations.id = old.conversation_id AND {ours})
    ORDER BY created_at LIMIT ?)
RETURNING id"""
_DELETE_OLD_RECORDS = (
    "DELETE FROM resets WHERE reset_at < ? AND shelf_id IS NULL",
    "DELETE FROM reports WHERE reported_at < ?",
)
# A private question is a conversation of its own: in a server, though direct, or with the question's own id.
# The last condition is no EXISTS, for which PostgreSQL would read all messages.
_DELETE_PRIVATE = """
DELETE FROM conversations WHERE kind = 'direct' AND created_at < ? AND channel_id > 0 AND {ours} AND (
    guild_id IS NOT NULL OR (SELECT 1 FROM discord_messages WHERE discord_id = channel_id) IS NOT NULL)
RETURNING id"""
_DELETE_EMPTY = """
DELETE FROM conversations WHERE kind = 'direct' AND channel_id > 0 AND {ours}
AND NOT EXISTS (SELECT 1 FROM messages WHERE conversation_id = conversations.id)
AND NOT EXISTS (SELECT 1 FROM settings WHERE conversation_id = conversations.id)
AND NOT EXISTS (SELECT 1 FROM resets WHERE conversation_id = conversations.id)
RETURNING id"""
_MARK = "INSERT INTO departures VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
# A channel is whose its conversation is; without one it is anybody's.
_GONE = """
SELECT place, discord_id FROM departures WHERE gone_at <= ? AND (
    (place = 'server' AND {our_server}) OR (place = 'channel' AND NOT EXISTS (
        SELECT 1 FROM conversations WHERE channel_id = discord_id AND NOT ({ours}))))
LIMIT 1"""
_SERVERS = """
SELECT guild_id FROM (
    SELECT guild_id FROM conversations WHERE guild_id IS NOT NULL
    UNION SELECT guild_id FROM server_settings UNION SELECT guild_id FROM blocks) AS known
WHERE {ours}"""
_CONVERSATIONS = {
    "server": "SELECT id FROM conversations WHERE guild_id = ?1",
    "channel": "SELECT id FROM conversations WHERE channel_id = ?1",
}
# What a reset put aside is a conversation of its own.
_MESSAGES = """
DELETE FROM messages WHERE id IN (
    SELECT id FROM messages WHERE role = 'user' AND conversation_id IN (
        {conversations} UNION SELECT shelf_id FROM resets WHERE conversation_id IN ({conversations}))
    LIMIT ?2)
RETURNING id"""
_SHELVES = """
DELETE FROM conversations
WHERE id IN (SELECT shelf_id FROM resets WHERE conversation_id IN ({conversations}))"""

_DELETE_CONVERSATIONS = "DELETE FROM conversations WHERE id IN ({conversations})"


class Place(StrEnum):
    """What may be gone."""

    SERVER = "server"
    CHANNEL = "channel"


class Retention:
    """Deletes what is not kept any longer, of our shards' servers."""

    def __init__(
        self, database: Database, *, now: Callable[[], datetime] = utc_now, shards: Shards = EVERYTHING
    ) -> None:
        self._database = database
        self._now = now
        self._delete_old, self._delete_private, self._delete_empty, self._gone, self._servers = (
            sql.format(ours=shards.condition("guild_id"), our_server=shards.condition("discord_id"))
            for sql in (_DELETE_OLD, _DELETE_PRIVATE, _DELETE_EMPTY, _GONE, _SERVERS)
        )

    @act
    async def delete_older(self, than: datetime) -> int:
        """Delete a batch of the questions asked before a time, with their answers; return how many."""
        before = to_milliseconds(than)
        async with self._database.transaction() as transaction:
            for statement in _DELETE_OLD_RECORDS:
                await transaction.fetch_all(statement, (before,))
            rows = await transaction.fetch_all(self._delete_old, (before, BATCH_SIZE))
            if rows:
                await note_removed(transaction)
        return len(rows)

    @act
    async def delete_private(self, *, begun_before: datetime) -> int:
        """Delete private questions that were left behind, with their answers; return how many."""
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch_all(self._delete_private, (to_milliseconds(begun_before),))
            if rows:
                await note_removed(transaction)
        return len(rows)

    @act
    async def clear_up(self) -> None:
        """Delete what an earlier run left behind: private questions, and direct messages without a word.

        Call it at the start, while nobody asks anything.
        """
        num_deleted = await self.delete_private(begun_before=datetime.max.replace(tzinfo=UTC))
        async with self._database.transaction() as transaction:
            num_deleted += len(await transaction.fetch_all(self._delete_empty))
        if num_deleted:
            await self.scrub()

    @act
    async def mark_gone(self, place: Place, discord_id: int) -> None:
        """Note that we are no longer in a server, or that a channel was deleted."""
        async with self._database.transaction() as transaction:
            await transaction.fetch_all(_MARK, (place, discord_id, to_milliseconds(self._now())))

    @act
    async def mark_back(self, guild_id: int) -> None:
        """Note that we are in a server again: what is kept of it stays."""
        async with self._database.transaction() as transaction:
            await transaction.fetch_all(
                "DELETE FROM departures WHERE place = 'server' AND discord_id = ?", (guild_id,)
            )

    async def compare_servers(self, guild_ids: Collection[int]) -> None:
        """Note which servers we are in now: we may have been away when we were removed from one or added."""
        known = await self._database.fetch_all(self._servers)
        gone = await self._database.fetch_all("SELECT discord_id FROM departures WHERE place = 'server'")
        for guild_id in {row["discord_id"] for row in gone} & set(guild_ids):
            await self.mark_back(guild_id)
        for guild_id in {row["guild_id"] for row in known} - set(guild_ids):
            await self.mark_gone(Place.SERVER, guild_id)

    @act
    async def delete_gone(self, *, gone_before: datetime) -> bool:
        """Delete a batch of what is kept of one place that is gone so long; return whether there was one."""
        async with self._database.transaction() as transaction:
            row = await transaction.fetch_one(self._gone, (to_milliseconds(gone_before),))
            if row is None:
                return False
            await note_removed(transaction)
            place, discord_id = row["place"], row["discord_id"]
            conversations = _CONVERSATIONS[place]
            messages = _MESSAGES.format(conversations=conversations)
            if await transaction.fetch_all(messages, (discord_id, BATCH_SIZE)):
                return True
            await transaction.fetch_all(_SHELVES.format(conversations=conversations), (discord_id,))
            await transaction.fetch_all(
                _DELETE_CONVERSATIONS.format(conversations=conversations), (discord_id,)
            )
            if place == Place.SERVER:
                await transaction.fetch_all("DELETE FROM server_settings WHERE guild_id = ?", (discord_id,))
                await transaction.fetch_all("DELETE FROM blocks WHERE guild_id = ?", (discord_id,))
            await transaction.fetch_all(
                "DELETE FROM departures WHERE place = ? AND discord_id = ?", (place, discord_id)
            )
            return True

    async def scrub(self) -> None:
        """Make what was deleted unreadable in the files too."""
        await self._database.scrub()
