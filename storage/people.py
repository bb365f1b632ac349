"""One person's data, wherever it is: forgotten, handed out, or never taken in the first place.

Knows every column that holds a person's id; a test compares these with the schema. Deletes in small
transactions, so that nobody waits for long; what was interrupted is finished by doing it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from storage.database import Database, Row, Transaction, act
from storage.removals import note_removed
from storage.types import from_milliseconds, to_milliseconds, utc_now

BATCH_SIZE = 200
"""Questions deleted in one transaction."""
NOBODY = 0
"""Stands where somebody was who asked to be forgotten."""

_DIRECT = """
SELECT id FROM conversations WHERE kind = 'direct' AND id IN (
    SELECT conversation_id FROM messages WHERE author_id = ?1
    UNION SELECT conversation_id FROM settings WHERE by_user_id = ?1
    UNION SELECT conversation_id FROM resets WHERE by_user_id = ?1)"""
_BATCH = "SELECT id FROM messages WHERE author_id = ? ORDER BY id LIMIT ?"
# A question takes its answers along.
_DELETE_UP_TO = "DELETE FROM messages WHERE author_id = ? AND id <= ?"
_COUNT_ANSWERS = """
SELECT count(*) AS num FROM messages AS answer JOIN messages AS question ON question.id = answer.reply_to
WHERE question.author_id = ? AND question.id <= ?"""
_ANONYMISE = (
    "UPDATE settings SET by_user_id = ?2 WHERE by_user_id = ?1",
    "UPDATE server_settings SET by_user_id = ?2 WHERE by_user_id = ?1",
    "UPDATE resets SET by_user_id = ?2 WHERE by_user_id = ?1",
    "UPDATE resets SET undone_by_user_id = ?2 WHERE undone_by_user_id = ?1",
    "UPDATE blocks SET by_user_id = ?2 WHERE by_user_id = ?1",
)
"""What a person decided for others stays in force, without their name."""
_DELETE_OWN = (
    "DELETE FROM reports WHERE by_user_id = ?",
    "DELETE FROM quotes WHERE author_id = ?",
)
"""What others quote of a person goes, and their question stays."""

_QUESTIONS = """
SELECT messages.*, guild_id, channel_id, kind FROM messages
JOIN conversations ON conversations.id = conversation_id
WHERE author_id = ? AND messages.id > ? ORDER BY messages.id LIMIT ?"""
_ANSWERS = """
SELECT answer.* FROM messages AS answer JOIN messages AS question ON question.id = answer.reply_to
WHERE question.author_id = ? AND question.id > ? AND question.id <= ? ORDER BY answer.id"""
_CHANGES = """
SELECT guild_id, channel_id, key, value, changed_at FROM settings
JOIN conversations ON conversations.id = conversation_id WHERE by_user_id = ?1
UNION ALL
SELECT guild_id, NULL, key, value, changed_at FROM server_settings WHERE by_user_id = ?1
ORDER BY changed_at"""

_SUMMARIES = """
SELECT guild_id, channel_id, content, summaries.created_at FROM summaries
JOIN conversations ON conversations.id = conversation_id
WHERE content <> '' AND summaries.id IN (
    SELECT summary_id FROM summed_up JOIN messages ON messages.id = message_id WHERE author_id = ?)
ORDER BY summaries.id"""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How much was forgotten of a person."""

    num_questions: int = 0
    num_answers: int = 0
    num_conversations: int = 0
    """Direct messages, which belong to the person as a whole, settings included."""


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer to one of a person's questions."""

    state: str
    content: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeptQuestion:
    """A question of a person, where it was asked, and what was answered."""

    guild_id: int | None
    channel_id: int
    kind: str
    author_name: str
    content: str
    created_at: datetime
    answers: tuple[KeptAnswer, ...]


@dataclass(frozen=True, slots=True)
class KeptChange:
    """A setting as a person left it. `value` is JSON."""

    guild_id: int | None
    channel_id: int | None
    key: str
    value: str
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class KeptSummary:
    """What was summed up of messages some of which are a person's."""

    guild_id: int | None
    channel_id: int
    content: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeptData:
    """All that is kept of one person."""

    questions: tuple[KeptQuestion, ...]
    changes: tuple[KeptChange, ...]
    opted_out_at: datetime | None
    blocked_on: tuple[int, ...]
    """Servers whose moderators blocked the person."""
    summaries: tuple[KeptSummary, ...] = ()


class People:
    """Every person's rights over their own data."""

    def __init__(self, database: Database, *, now: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._now = now

    async def is_opted_out(self, user_id: int) -> bool:
        """Tell whether nothing of this person may be taken."""
        row = await self._database.fetch_one("SELECT 1 FROM opt_outs WHERE user_id = ?", (user_id,))
        return row is not None

    async def opted_out(self, user_ids: Collection[int]) -> set[int]:
        """Return those of some people of whom nothing may be taken."""
        marks = ", ".join("?" * len(user_ids))
        sql = f"SELECT user_id FROM opt_outs WHERE user_id IN ({marks})"  # noqa: S608 - marks alone
        return {row["user_id"] for row in await self._database.fetch_all(sql, tuple(user_ids))}

    @act
    async def opt_out(self, user_id: int) -> bool:
        """Take nothing of this person from now on; return whether that is new."""
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch_all(
                "INSERT INTO opt_outs VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING user_id",
                (user_id, to_milliseconds(self._now())),
            )
        return bool(rows)

    @act
    async def opt_in(self, user_id: int) -> bool:
        """Answer this person again; return whether they had opted out."""
        async with self._database.transaction() as transaction:
            rows = await transaction.fetch_all(
                "DELETE FROM opt_outs WHERE user_id = ? RETURNING user_id", (user_id,)
            )
        return bool(rows)

    async def forget(self, user_id: int) -> Forgotten:
        """Delete a person's questions with answers, direct messages, reports, quotes, and the id elsewhere.

        An opt-out and blocks of the person stay: they are what protects them, and others from them.
        """
        direct = await self._database.fetch_all(_DIRECT, (user_id,))
        num_questions = num_answers = 0
        while deleted := await self._forget_questions(user_id):
            num_questions, num_answers = num_questions + deleted[0], num_answers + deleted[1]
        await self._forget_rest(user_id, [row["id"] for row in direct])
        await self._database.scrub()
        return Forgotten(num_questions, num_answers, len(direct))

    @act
    async def _forget_questions(self, user_id: int) -> tuple[int, int] | None:
        """Delete a batch; return how many questions and answers, None if there were none."""
        async with self._database.transaction() as transaction:
            batch = await transaction.fetch_all(_BATCH, (user_id, BATCH_SIZE))
            if not batch:
                return None
            await note_removed(transaction)
            return len(batch), await _delete(transaction, user_id, batch[-1]["id"])

    @act
    async def _forget_rest(self, user_id: int, direct: list[int]) -> None:
        async with self._database.transaction() as transaction:
            for conversation_id in direct:
                await transaction.fetch_all("DELETE FROM conversations WHERE id = ?", (conversation_id,))
            for statement in _ANONYMISE:
                await transaction.fetch_all(statement, (user_id, NOBODY))
            for statement in _DELETE_OWN:
                await transaction.fetch_all(statement, (user_id,))
            await note_removed(transaction)

    async def kept(self, user_id: int) -> KeptData:
        """Return all that is kept of a person."""
        changes = await self._database.fetch_all(_CHANGES, (user_id,))
        opt_out = await self._database.fetch_one(
            "SELECT opted_out_at FROM opt_outs WHERE user_id = ?", (user_id,)
        )
        blocks = await self._database.fetch_all("SELECT guild_id FROM blocks WHERE user_id = ?", (user_id,))
        summaries = await self._database.fetch_all(_SUMMARIES, (user_id,))
        return KeptData(
            questions=await self._questions(user_id),
            changes=tuple(_to_change(row) for row in changes),
            opted_out_at=None if opt_out is None else from_milliseconds(opt_out["opted_out_at"]),
            blocked_on=tuple(row["guild_id"] for row in blocks),
            summaries=tuple(_to_summary(row) for row in summaries),
        )

    async def _questions(self, user_id: int) -> tuple[KeptQuestion, ...]:
        """Read a person's questions batch by batch, so that others get their turn in between."""
        found: list[KeptQuestion] = []
        last_id = 0
        while rows := await self._database.fetch_all(_QUESTIONS, (user_id, last_id, BATCH_SIZE)):
            answers = await self._database.fetch_all(_ANSWERS, (user_id, last_id, rows[-1]["id"]))
            found += [_to_question(row, answers) for row in rows]
            last_id = rows[-1]["id"]
        return tuple(found)


async def _delete(transaction: Transaction, user_id: int, last_id: int) -> int:
    """Delete a person's questions up to an id; return how many answers went with them."""
    (row,) = await transaction.fetch_all(_COUNT_ANSWERS, (user_id, last_id))
    await transaction.fetch_all(_DELETE_UP_TO, (user_id, last_id))
    return int(row["num"])


def _to_question(row: Row, answers: list[Row]) -> KeptQuestion:
    return KeptQuestion(
        guild_id=row["guild_id"],
        channel_id=row["channel_id"],
        kind=row["kind"],
        author_name=row["author_name"],
        content=row["content"],
        created_at=from_milliseconds(row["created_at"]),
        answers=tuple(
            KeptAnswer(answer["state"], answer["content"], from_milliseconds(answer["created_at"]))
            for answer in answers
            if answer["reply_to"] == row["id"]
        ),
    )


def _to_change(row: Row) -> KeptChange:
    return KeptChange(
        row["guild_id"], row["channel_id"], row["key"], row["value"], from_milliseconds(row["changed_at"])
    )


def _to_summary(row: Row) -> KeptSummary:
    return KeptSummary(
        row["guild_id"], row["channel_id"], row["content"], from_milliseconds(row["created_at"])
    )
