"""The queries that read a conversation in order. Reads only; knows nothing of how messages come to be.

Order is that of ids: a question is stored together with its answer, and only a conversation's newest answer
is ever regenerated, so ids never run against the conversation.
"""

from __future__ import annotations

from storage.database import Database, Row
from storage.errors import NotFoundError
from storage.rows import to_message
from storage.types import Message

VISIBLE_TO_MODEL = """
SELECT seen.* FROM messages AS answer
JOIN messages AS seen ON seen.conversation_id = answer.conversation_id AND seen.id <= answer.reply_to
WHERE answer.id = ? AND answer.role = 'assistant' AND seen.superseded_by IS NULL AND (
    seen.role = 'user' OR (seen.state IN ('complete', 'stopped', 'interrupted') AND seen.content <> ''))
ORDER BY seen.id DESC LIMIT ?"""
NEWEST = """
SELECT * FROM messages
WHERE conversation_id = ? AND superseded_by IS NULL
ORDER BY id DESC LIMIT ?"""


async def history_before(database: Database, answer_id: int, limit: int) -> list[Message]:
    """Return the newest `limit` messages up to the answer's question, oldest first."""
    rows = await database.fetch_all(VISIBLE_TO_MODEL, (answer_id, limit))
    # The question itself is always among them.
    if not rows:
        raise NotFoundError("This message was deleted, so there is nothing to answer.")
    return _oldest_first(rows)


async def recent(database: Database, conversation_id: int, limit: int) -> list[Message]:
    """Return the newest `limit` messages in any state, oldest first."""
    return _oldest_first(await database.fetch_all(NEWEST, (conversation_id, limit)))


def _oldest_first(rows: list[Row]) -> list[Message]:
    return [to_message(row) for row in reversed(rows)]
