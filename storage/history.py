"""The queries that read a conversation in order. Reads only; knows nothing of how messages come to be.

Order is that of questions, by id, each answer behind the question it answers: the last one, where several
were asked before it began. A thread that was started from an answer goes on from that answer's history.
"""

from __future__ import annotations

from collections.abc import Collection

from storage.database import Database, Row
from storage.errors import NotFoundError
from storage.types import Message, to_quoting_message

_DISCORD_EPOCH, _TIME_SHIFT = 1_420_070_400_000, 22
"""Ids of Discord hold milliseconds since 2015 above so many bits."""
_NEWEST_FIRST = "ORDER BY coalesce(seen.reply_to, seen.id) DESC, seen.role, seen.id DESC LIMIT ?"
SEEN = """
SELECT seen.*, (
    SELECT json_group_array(json_array(position, author_name, content, discord_id))
    FROM quotes WHERE message_id = seen.id) AS quoted"""
"""Selects messages, of a table that is called so, with what they quote."""
_COUNTS = """
seen.superseded_by IS NULL AND (
    seen.role = 'user' OR (seen.state IN ('complete', 'stopped', 'interrupted') AND seen.content <> ''))"""
# Not as joins: so every database reads an index in the order of the answer, and stops at the limit.
_UP_TO_LAST = """
seen.conversation_id = (SELECT conversation_id FROM last)
AND coalesce(seen.reply_to, seen.id) <= (SELECT reply_to FROM last)"""
VISIBLE_TO_MODEL = f"""
WITH last AS (SELECT id, conversation_id, reply_to FROM messages WHERE id = ? AND role = 'assistant')
{SEEN} FROM messages AS seen
WHERE {_UP_TO_LAST} AND seen.id <> (SELECT id FROM last) AND {_COUNTS}
{_NEWEST_FIRST}"""  # noqa: S608 - made of constants
VISIBLE_BEFORE_THREAD = f"""
WITH last AS (
    SELECT start.conversation_id, start.reply_to FROM messages AS answer
    JOIN conversations ON conversations.id = answer.conversation_id
    JOIN messages AS start ON start.id = conversations.continues_id
    WHERE answer.id = ? AND NOT EXISTS (SELECT 1 FROM resets WHERE shelf_id = start.conversation_id))
{SEEN} FROM messages AS seen
WHERE {_UP_TO_LAST} AND {_COUNTS}
{_NEWEST_FIRST}"""  # noqa: S608 - made of constants
VISIBLE_NEXT = f"""
{SEEN} FROM messages AS seen
WHERE seen.conversation_id = ? AND {_COUNTS}
{_NEWEST_FIRST}"""
NEWEST = f"""
{SEEN} FROM messages AS seen
WHERE seen.conversation_id = ? AND seen.superseded_by IS NULL
{_NEWEST_FIRST}"""

_KNOWN = "SELECT discord_id FROM discord_messages WHERE discord_id IN ({marks})"
_LAST_RESET = """
SELECT max(reset_at) AS at FROM resets JOIN conversations ON conversations.id = conversation_id
WHERE channel_id = ? AND undone_at IS NULL"""
_AN_ANSWER = "SELECT id FROM messages WHERE conversation_id = ? AND role = 'assistant' LIMIT 1"
# Private questions stand alone, and what is on a shelf is not gone on with.
# The sum keeps SQLite from going through all messages in the order of conversations.
ASKED_SINCE = """
SELECT messages.conversation_id + 0 AS conversation, COUNT(*) AS num_questions,
    MAX(messages.created_at) AS last_at FROM messages
JOIN conversations ON conversations.id = conversation_id
WHERE role = 'user' AND messages.created_at >= ? AND channel_id > 0 AND {ours} AND NOT (kind = 'direct' AND (
    guild_id IS NOT NULL OR (SELECT 1 FROM discord_messages WHERE discord_id = channel_id) IS NOT NULL))
GROUP BY conversation ORDER BY conversation"""


async def history_before(database: Database, answer_id: int, limit: int) -> list[Message]:
    """Return the newest `limit` messages up to the answer's question, oldest first."""
    rows = await database.fetch_all(VISIBLE_TO_MODEL, (answer_id, limit))
    # The question itself is always among them.
    if not rows:
        raise NotFoundError("This message was deleted, so there is nothing to answer.")
    if len(rows) < limit:
        rows += await database.fetch_all(VISIBLE_BEFORE_THREAD, (answer_id, limit - len(rows)))
    return _oldest_first(rows)


async def history_next(database: Database, conversation_id: int, limit: int) -> list[Message]:
    """Return the newest `limit` messages that the next answer's prompt is made of, oldest first.

    Before the first question of a thread it is nothing, and after that also what the thread goes on from.
    """
    rows = await database.fetch_all(VISIBLE_NEXT, (conversation_id, limit))
    if rows and len(rows) < limit:
        newest = await database.fetch_one(_AN_ANSWER, (conversation_id,))
        if newest is not None:
            rows += await database.fetch_all(VISIBLE_BEFORE_THREAD, (newest["id"], limit - len(rows)))
    return _oldest_first(rows)


async def recent(database: Database, conversation_id: int, limit: int) -> list[Message]:
    """Return the newest `limit` messages in any state, oldest first."""
    return _oldest_first(await database.fetch_all(NEWEST, (conversation_id, limit)))


async def beyond_memory(database: Database, channel_id: int, discord_ids: Collection[int]) -> set[int]:
    """Return those of a channel's messages that are no part of what is stored, nor older than a reset there.

    Ids of Discord tell the time.
    """
    marks = ", ".join("?" * len(discord_ids))
    known = await database.fetch_all(_KNOWN.format(marks=marks), tuple(discord_ids))
    (reset,) = await database.fetch_all(_LAST_RESET, (channel_id,))
    first_id = 0 if reset["at"] is None else (reset["at"] - _DISCORD_EPOCH) << _TIME_SHIFT
    return {one for one in discord_ids if one >= first_id} - {row["discord_id"] for row in known}


def _oldest_first(rows: list[Row]) -> list[Message]:
    return [to_quoting_message(row) for row in reversed(rows)]
