"""Endings of answers that no Discord message is known to show yet, so that a later run can make that good.

Inside a transaction. Knows nothing of how an ending is shown.
"""

from __future__ import annotations

from storage import parts
from storage.database import Row, Transaction
from storage.resets import SHELVES_BELOW
from storage.rows import to_message
from storage.types import InterruptedAnswer, Message

_RECORD = "INSERT OR REPLACE INTO unshown_endings (answer_id, note) VALUES (?, ?)"
_FORGET = "DELETE FROM unshown_endings WHERE answer_id = ?"
_FORGET_OLD = """
DELETE FROM unshown_endings WHERE answer_id IN (SELECT id FROM messages WHERE ended_at < ?)"""
_NEWEST = """
SELECT messages.*, note FROM unshown_endings
JOIN messages ON messages.id = answer_id JOIN conversations ON conversations.id = conversation_id
WHERE channel_id >= ? AND state <> 'pending' ORDER BY answer_id DESC LIMIT ?"""
_CHANNEL_AND_QUESTION = """
SELECT channel_id, discord_id AS question_discord_id
FROM conversations LEFT JOIN discord_messages ON message_id = ? AND position = 0
WHERE conversations.id = ?"""


async def record(transaction: Transaction, answer_id: int, note: str | None) -> None:
    """Record that an answer ended and is still to be shown so, with a note of the caller's."""
    await transaction.fetch_all(_RECORD, (answer_id, note))


async def forget(transaction: Transaction, answer_id: int) -> None:
    """Forget the record: the ending is shown, or never can be."""
    await transaction.fetch_all(_FORGET, (answer_id,))


async def newest(transaction: Transaction, *, ended_after: int, limit: int) -> list[InterruptedAnswer]:
    """Return the newest answers whose ending is not shown, oldest first; forget those that ended before."""
    await transaction.fetch_all(_FORGET_OLD, (ended_after,))
    rows = await transaction.fetch_all(_NEWEST, (SHELVES_BELOW, limit))
    return [await located(transaction, to_message(row), _note_of(row)) for row in reversed(rows)]


async def located(transaction: Transaction, answer: Message, note: str | None = None) -> InterruptedAnswer:
    """Return an answer with where it is shown."""
    shown_by = await transaction.fetch_all(parts.OF_MESSAGE, (answer.id,))
    (row,) = await transaction.fetch_all(_CHANNEL_AND_QUESTION, (answer.reply_to, answer.conversation_id))
    return InterruptedAnswer(
        answer,
        channel_id=row["channel_id"],
        part_ids=tuple(part["discord_id"] for part in shown_by),
        question_discord_id=row["question_discord_id"],
        note=note,
    )


def _note_of(row: Row) -> str | None:
    note: str | None = row["note"]
    return note
