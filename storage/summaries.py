"""What was summed up of messages that the model no longer sees.

A summary goes with any message that is in it: when that is deleted or edited, whoever does it and why, the
schema sees to it. One that somebody deleted stays as an empty one, so that it is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from storage import scopes
from storage.database import Database, act
from storage.history import SEEN
from storage.removals import note_removed
from storage.types import (
    Message,
    from_milliseconds,
    storable,
    to_milliseconds,
    to_quoting_message,
    utc_now,
)

MAX_KEPT = 16
"""Of one conversation, the newest ones."""

_OWN = "SELECT * FROM summaries WHERE conversation_id = ? ORDER BY until_id, id"
# Of what a thread goes on from: only what sums up messages that are before the thread.
_BEFORE_THREAD = """
SELECT summaries.* FROM conversations
JOIN messages AS start ON start.id = conversations.continues_id
JOIN summaries ON summaries.conversation_id = start.conversation_id AND until_id <= start.reply_to
WHERE conversations.id = ? AND NOT EXISTS (SELECT 1 FROM resets WHERE shelf_id = start.conversation_id)
ORDER BY until_id, summaries.id"""
_STANDING = f"""
{SEEN} FROM messages AS seen
WHERE seen.id = ? AND seen.conversation_id = ? AND seen.superseded_by IS NULL"""
_INSERT = """
INSERT INTO summaries (conversation_id, until_id, content, created_at) VALUES (?, ?, ?, ?) RETURNING id"""
_KEEP_NEWEST = """
DELETE FROM summaries WHERE conversation_id = ?1 AND id NOT IN (
    SELECT id FROM summaries WHERE conversation_id = ?1 ORDER BY until_id DESC, id DESC LIMIT ?2)"""


@dataclass(frozen=True, slots=True)
class Summary:
    """What was said before the message `until_id`, in short. Empty where there is to be none."""

    until_id: int
    content: str
    created_at: datetime


class Summaries:
    """The summaries of all conversations, over one database."""

    def __init__(self, database: Database, *, now: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._now = now

    async def of(self, conversation_id: int) -> list[Summary]:
        """Return those of a conversation, and of what it goes on from, oldest first."""
        rows = await self._database.fetch_all(_BEFORE_THREAD, (conversation_id,))
        rows += await self._database.fetch_all(_OWN, (conversation_id,))
        return [
            Summary(row["until_id"], row["content"], from_milliseconds(row["created_at"])) for row in rows
        ]

    @act
    async def add(self, conversation_id: int, of: Sequence[Message], until_id: int, content: str) -> bool:
        """Keep what `of` was summed up as; return False, and keep nothing, if that is no longer said so."""
        async with self._database.transaction() as transaction:
            for message in of:
                row = await transaction.fetch_one(_STANDING, (message.id, message.conversation_id))
                if row is None or _said(to_quoting_message(row)) != _said(message):
                    return False
            at = to_milliseconds(self._now())
            (added,) = await transaction.fetch_all(
                _INSERT, (conversation_id, until_id, storable(content), at)
            )
            for message in of:
                await transaction.fetch_all("INSERT INTO summed_up VALUES (?, ?)", (added["id"], message.id))
            await transaction.fetch_all(_KEEP_NEWEST, (conversation_id, MAX_KEPT))
        return True

    @act
    async def delete(self, conversation_id: int) -> int:
        """Delete what was summed up in a conversation, not to be made again; return how many there were."""
        async with self._database.transaction(scopes.conversation(conversation_id)) as transaction:
            rows = await transaction.fetch_all(
                "UPDATE summaries SET content = '' WHERE conversation_id = ? AND content <> '' RETURNING id",
                (conversation_id,),
            )
            if rows:
                await note_removed(transaction)
        if rows:
            await self._database.scrub()
        return len(rows)


def _said(message: Message) -> tuple[str, list[str]]:
    return message.content, [quote.content for quote in message.quotes]
