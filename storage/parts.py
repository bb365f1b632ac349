"""Which Discord messages show which message: one for a question, one or more for an answer.

Inside a transaction. Knows nothing of the states of a message.
"""

from __future__ import annotations

from storage.database import Transaction
from storage.errors import DuplicateMessageError

OF_MESSAGE = "SELECT discord_id FROM discord_messages WHERE message_id = ? ORDER BY position"
SHOWN_MESSAGE = """
SELECT messages.* FROM discord_messages JOIN messages ON messages.id = message_id WHERE discord_id = ?"""
_INSERT = "INSERT INTO discord_messages (discord_id, message_id, position) VALUES (?, ?, ?)"
_OWNER = "SELECT message_id FROM discord_messages WHERE discord_id = ?"
_CLEAR = "DELETE FROM discord_messages WHERE message_id = ? AND (position = ? OR discord_id = ?)"
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
    """Put a Discord message at `position`, in the place of any other there.

    Raises `DuplicateMessageError` if it shows another message, `NotFoundError` if there is no such message.
    """
    owner = await transaction.fetch_one(_OWNER, (discord_id,))
    if owner is not None and owner["message_id"] != message_id:
        raise DuplicateMessageError(discord_id)
    await transaction.fetch_all(_CLEAR, (message_id, position, discord_id))
    await transaction.fetch_all(_INSERT, (discord_id, message_id, position))


async def move(transaction: Transaction, *, from_id: int, to_id: int) -> None:
    """Let `to_id`, which has none, be shown by the Discord messages of `from_id`."""
    await transaction.fetch_all(_MOVE, (to_id, from_id))


async def detach(transaction: Transaction, discord_id: int) -> None:
    """Forget a Discord message that showed part of an answer; the parts after it move up."""
    row = await transaction.fetch_one(_DETACH, (discord_id,))
    if row is not None:
        for statement in _CLOSE_GAP:
            await transaction.fetch_all(statement, (row["message_id"], row["position"]))
