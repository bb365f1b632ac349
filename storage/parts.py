"""Which Discord messages show which message, and which endings of answers none is known to show yet.

A question has one, an answer one or more. The endings are kept so that a later run can make that good. Works
inside a transaction. Knows nothing of the states of a message.
"""

from __future__ import annotations

from storage.database import Transaction
from storage.errors import DuplicateMessageError
from storage.resets import SHELVES_BELOW
from storage.shards import Shards
from storage.types import InterruptedAnswer, Message, to_message

OF_MESSAGE = "SELECT discord_id FROM discord_messages WHERE message_id = ? ORDER BY position"
SHOWN_MESSAGE = """
SELECT messages.* FROM discord_messages JOIN messages ON messages.id = message_id WHERE discord_id = ?"""
_INSERT = """
INSERT INTO discord_messages (discord_id, message_id, position)
SELECT ?1, ?2, CASE WHEN COUNT(*) FILTER (WHERE position = ?3) > 0 THEN MAX(position) + 1 ELSE ?3 END
FROM discord_messages WHERE message_id = ?2
ON CONFLICT (discord_id) DO NOTHING RETURNING discord_id"""
_OWNER = "SELECT message_id FROM discord_messages WHERE discord_id = ?"
_CLEAR = "DELETE FROM discord_messages WHERE message_id = ? AND discord_id = ?"
_DETACH = """
DELETE FROM discord_messages
WHERE discord_id = ? AND message_id IN (SELECT id FROM messages WHERE role = 'assistant')
RETURNING message_id, position"""
# In two steps, because even within one statement no position may be taken twice.
_CLOSE_GAP = (
    "UPDATE discord_messages SET position = position + 1000000 WHERE message_id = ?1 AND position > ?2",
    "UPDATE discord_messages SET position = position - 1000001"
    " WHERE message_id = ?1 AND position - 1000000 > ?2",
)
_MOVE = "UPDATE discord_messages SET message_id = ? WHERE message_id = ?"


async def refuse_known(transaction: Transaction, discord_id: int) -> None:
    """Raise `DuplicateMessageError` if any message is shown by this Discord message."""
    if await transaction.fetch_one(_OWNER, (discord_id,)) is not None:
        raise DuplicateMessageError(discord_id)


async def attach(transaction: Transaction, message_id: int, discord_id: int, position: int) -> None:
    """Put a Discord message at `position`, or behind all others where one is there already.

    Raises `DuplicateMessageError` if it shows another message, `NotFoundError` if there is no such message.
    """
    owner = await transaction.fetch_one(_OWNER, (discord_id,))
    if owner is not None and owner["message_id"] != message_id:
        raise DuplicateMessageError(discord_id)
    await transaction.fetch_all(_CLEAR, (message_id, discord_id))
    if not await transaction.fetch_all(_INSERT, (discord_id, message_id, position)):
        raise DuplicateMessageError(discord_id)


async def move(transaction: Transaction, *, from_id: int, to_id: int) -> None:
    """Let `to_id`, which has none, be shown by the Discord messages of `from_id`."""
    await transaction.fetch_all(_MOVE, (to_id, from_id))


async def detach(transaction: Transaction, discord_id: int) -> None:
    """Forget a Discord message that showed part of an answer; the parts after it move up."""
    row = await transaction.fetch_one(_DETACH, (discord_id,))
    if row is not None:
        for statement in _CLOSE_GAP:
            await transaction.fetch_all(statement, (row["message_id"], row["position"]))


_NOTE_UNSHOWN = """
INSERT INTO unshown_endings (answer_id, note) VALUES (?, ?)
ON CONFLICT (answer_id) DO UPDATE SET note = excluded.note"""
_NOTE_SHOWN = "DELETE FROM unshown_endings WHERE answer_id = ?"
_FORGET_OLD = """
DELETE FROM unshown_endings WHERE (SELECT ended_at FROM messages WHERE id = answer_id) < ?"""
_UNSHOWN = """
SELECT messages.*, note FROM unshown_endings
JOIN messages ON messages.id = answer_id JOIN conversations ON conversations.id = conversation_id
WHERE channel_id >= ? AND state <> 'pending' AND superseded_by IS NULL"""
_CHANNEL_AND_QUESTION = """
SELECT channel_id, discord_id AS question_discord_id
FROM conversations LEFT JOIN discord_messages ON message_id = ? AND position = 0
WHERE conversations.id = ?"""


async def note_unshown(transaction: Transaction, answer_id: int, note: str | None) -> None:
    """Record that an answer ended and is still to be shown so, with a note of the caller's."""
    await transaction.fetch_all(_NOTE_UNSHOWN, (answer_id, note))


async def note_shown(transaction: Transaction, answer_id: int) -> None:
    """Forget the record: the ending is shown, or never can be."""
    await transaction.fetch_all(_NOTE_SHOWN, (answer_id,))


async def newest_unshown(
    transaction: Transaction, shards: Shards, *, ended_after: int, limit: int
) -> list[InterruptedAnswer]:
    """Return our newest answers whose ending is not shown, oldest first; forget those that ended before."""
    await transaction.fetch_all(_FORGET_OLD, (ended_after,))
    ours = f"{_UNSHOWN} AND {shards.condition('guild_id')}"
    rows = await transaction.fetch_all(f"{ours} ORDER BY answer_id DESC LIMIT ?", (SHELVES_BELOW, limit))
    return [await located(transaction, to_message(row), row["note"]) for row in reversed(rows)]


async def find_unshown(transaction: Transaction, answer_id: int) -> InterruptedAnswer | None:
    """Return an answer if it has ended, its ending is not shown, and no other one is to take its place."""
    row = await transaction.fetch_one(f"{_UNSHOWN} AND answer_id = ?", (SHELVES_BELOW, answer_id))
    return None if row is None else await located(transaction, to_message(row), row["note"])


async def located(transaction: Transaction, answer: Message, note: str | None = None) -> InterruptedAnswer:
    """Return an answer with where it is shown."""
    shown_by = await transaction.fetch_all(OF_MESSAGE, (answer.id,))
    (row,) = await transaction.fetch_all(_CHANNEL_AND_QUESTION, (answer.reply_to, answer.conversation_id))
    return InterruptedAnswer(
        answer,
        channel_id=row["channel_id"],
        part_ids=tuple(part["discord_id"] for part in shown_by),
        question_discord_id=row["question_discord_id"],
        note=note,
    )
