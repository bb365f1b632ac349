"""Resets of a conversation: put aside at once, brought back on request, deleted for good a little later.

What is put aside lies on a shelf, a conversation of its own that belongs to no place on Discord, so nothing
that reads the real one ever sees it. Works inside a transaction. Knows nothing of who may do what.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage.database import Transaction
from storage.errors import NotFoundError
from storage.shards import Shards

SHELVES_BELOW = -(1 << 40)
"""The channel ids of shelves; Discord has none below zero."""
_INSERT = """
INSERT INTO resets (conversation_id, by_user_id, reset_at, num_messages) VALUES (?, ?, ?, ?) RETURNING id"""
_INSERT_SHELF = """
INSERT INTO conversations (channel_id, kind, guild_id, created_at)
SELECT ?1, kind, guild_id, ?2 FROM conversations WHERE id = ?3 RETURNING id"""
_FIND = """
SELECT resets.*, channel_id, guild_id FROM resets
JOIN conversations ON conversations.id = resets.conversation_id
WHERE resets.id = ?"""
_NEWEST = """
SELECT id FROM resets WHERE conversation_id = ? AND shelf_id IS NOT NULL ORDER BY id DESC LIMIT 1"""
_PURGE = """
DELETE FROM conversations WHERE channel_id < ? AND {ours} AND id NOT IN (
    SELECT shelf_id FROM resets WHERE shelf_id IS NOT NULL AND reset_at >= ?)
RETURNING id"""
IS_SHELVED = "SELECT 1 FROM resets WHERE shelf_id = ?"


@dataclass(frozen=True, slots=True)
class Reset:
    """One reset: its id, where it was, and how many messages were put aside."""

    id: int
    channel_id: int
    guild_id: int | None
    num_messages: int


async def put_aside(transaction: Transaction, conversation_id: int, *, by_user_id: int, at: int) -> Reset:
    """Put all messages of a conversation on a shelf. Raises `NotFoundError` if there is no conversation."""
    (counted,) = await transaction.fetch_all(
        "SELECT count(*) AS num FROM messages WHERE conversation_id = ?", (conversation_id,)
    )
    (row,) = await transaction.fetch_all(_INSERT, (conversation_id, by_user_id, at, counted["num"]))
    shelf = await transaction.fetch_one(_INSERT_SHELF, (SHELVES_BELOW - row["id"], at, conversation_id))
    if shelf is None:
        raise NotFoundError
    await transaction.fetch_all("UPDATE resets SET shelf_id = ? WHERE id = ?", (shelf["id"], row["id"]))
    await _move(transaction, conversation_id, shelf["id"])
    return await find(transaction, row["id"])


async def find(transaction: Transaction, reset_id: int) -> Reset:
    """Return a reset. Raises `NotFoundError`."""
    row = await transaction.fetch_one(_FIND, (reset_id,))
    if row is None:
        raise NotFoundError("This reset is not known any more.")
    return Reset(row["id"], row["channel_id"], row["guild_id"], row["num_messages"])


async def newest(transaction: Transaction, conversation_id: int) -> Reset | None:
    """Return the newest reset of a conversation whose messages are still there."""
    row = await transaction.fetch_one(_NEWEST, (conversation_id,))
    return None if row is None else await find(transaction, row["id"])


async def bring_back(
    transaction: Transaction, reset_id: int, *, by_user_id: int, at: int, not_before: int
) -> Reset:
    """Put the messages of a reset back before those that came since.

    Raises `NotFoundError` for a reset older than `not_before`, undone already or not known.
    """
    row = await transaction.fetch_one(
        "UPDATE resets SET undone_at = ?, undone_by_user_id = ?"
        " WHERE id = ? AND shelf_id IS NOT NULL AND reset_at >= ? RETURNING conversation_id, shelf_id",
        (at, by_user_id, reset_id, not_before),
    )
    if row is None:
        raise NotFoundError("This reset can no longer be undone.")
    await _move(transaction, row["shelf_id"], row["conversation_id"])
    await transaction.fetch_all("DELETE FROM conversations WHERE id = ?", (row["shelf_id"],))
    return await find(transaction, reset_id)


async def purge(transaction: Transaction, shards: Shards, *, before: int) -> int:
    """Delete what was put aside of ours before a time; return how many resets can no longer be undone."""
    purge = _PURGE.format(ours=shards.condition("guild_id"))
    return len(await transaction.fetch_all(purge, (SHELVES_BELOW, before)))


async def _move(transaction: Transaction, from_id: int, to_id: int) -> None:
    for table in ("messages", "summaries"):
        await transaction.fetch_all(
            f"UPDATE {table} SET conversation_id = ? WHERE conversation_id = ?",  # noqa: S608 - names of our own
            (to_id, from_id),
        )
