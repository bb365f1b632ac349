"""What becomes of a turn after it began: asked on, edited, gone on with, shortened, undone.

Also links threads to the answer they go on from. Each act is one transaction. Knows nothing of generation
and of who may do what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from storage import answers, parts, scopes
from storage.database import Database, Row, Transaction, act
from storage.errors import AnswerPendingError, NotFoundError
from storage.removals import note_removed
from storage.types import Message, MessageState, Quote, storable, to_message, to_milliseconds, utc_now

_INSERT_QUESTION = """
INSERT INTO messages (conversation_id, role, state, author_id, author_name, content, created_at, ended_at)
VALUES (?, 'user', 'complete', ?, ?, ?, ?, ?) RETURNING *"""
# Nothing is kept of a person who opted out, not even where another one quotes them.
_INSERT_QUOTE = """
INSERT INTO quotes (message_id, position, discord_id, author_id, author_name, content)
SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE NOT EXISTS (SELECT 1 FROM opt_outs WHERE user_id = ?4)"""
_QUOTED_IN = """
SELECT DISTINCT channel_id FROM quotes JOIN messages ON messages.id = message_id
JOIN conversations ON conversations.id = conversation_id WHERE discord_id = ?"""
_NEWEST_ANSWER = """
SELECT * FROM messages
WHERE conversation_id = ? AND role = 'assistant' AND superseded_by IS NULL ORDER BY id DESC LIMIT 1"""
_QUESTIONS_OF = """
SELECT id, author_id FROM messages AS question
WHERE conversation_id = ?1 AND role = 'user' AND id <= ?2 AND id > coalesce((
    SELECT max(reply_to) FROM messages
    WHERE conversation_id = ?1 AND role = 'assistant' AND reply_to < ?2), 0)
ORDER BY id"""
_LINK = """
UPDATE conversations SET continues_id = (
    SELECT messages.id FROM discord_messages
    JOIN messages ON messages.id = message_id JOIN conversations AS parent ON parent.id = conversation_id
    WHERE discord_id = ?2 AND role = 'assistant'
    AND coalesce(parent.guild_id, 0) = coalesce(conversations.guild_id, 0))
WHERE id = ?1 AND continues_id IS NULL
AND NOT EXISTS (SELECT 1 FROM messages WHERE conversation_id = ?1)
RETURNING continues_id"""


@dataclass(frozen=True, slots=True)
class NewestTurn:
    """The last thing said in a conversation: an answer, and who asked the questions before it."""

    answer: Message
    asker_id: int | None
    part_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NewQuestion:
    """What is stored of a question."""

    discord_id: int
    author_id: int
    author_name: str
    content: str
    created_at: datetime
    quotes: tuple[Quote, ...] = ()


class Turns:
    """The turns of all conversations, over one database."""

    def __init__(self, database: Database, *, now: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._now = now

    @act
    async def ask_on(self, answer_id: int, question: NewQuestion) -> Message:
        """Store one more question that a pending answer will answer too. Raises `NotFoundError`."""
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            await parts.refuse_known(transaction, question.discord_id)
            pending = await transaction.fetch_one(
                "SELECT conversation_id FROM messages WHERE id = ? AND state = 'pending'", (answer_id,)
            )
            if pending is None:
                raise NotFoundError("This answer no longer exists.")
            stored = await insert_question(transaction, pending["conversation_id"], question)
            await transaction.fetch_all(
                "UPDATE messages SET reply_to = ? WHERE id = ?", (stored.id, answer_id)
            )
            return stored

    @act
    async def edit_question(self, discord_id: int, content: str) -> Message | None:
        """Replace the text of a question; return it, or None if there is none or nothing changes."""
        async with self._database.transaction(scopes.conversation_showing(discord_id)) as transaction:
            row = await transaction.fetch_one(
                "UPDATE messages SET content = ?2 WHERE role = 'user' AND content <> ?2 AND id = "
                "(SELECT message_id FROM discord_messages WHERE discord_id = ?1) RETURNING *",
                (discord_id, storable(content)),
            )
            if row is not None:
                await note_removed(transaction)
        return None if row is None else to_message(row)

    @act
    async def move_question(self, from_id: int, to_id: int, author_name: str, content: str) -> bool:
        """Let another Discord message hold a question, with its name and text; return whether one was there.

        Not if that message is known already.
        """
        async with self._database.transaction(scopes.conversation_showing(from_id)) as transaction:
            moved = await transaction.fetch_one(
                "UPDATE discord_messages SET discord_id = ?2 WHERE discord_id = ?1 "
                "AND NOT EXISTS (SELECT 1 FROM discord_messages WHERE discord_id = ?2) "
                "AND (SELECT role FROM messages WHERE id = message_id) = 'user' RETURNING message_id",
                (from_id, to_id),
            )
            if moved is not None:
                await transaction.fetch_all(
                    "UPDATE messages SET author_name = ?, content = ? WHERE id = ?",
                    (storable(author_name), storable(content), moved["message_id"]),
                )
                await note_removed(transaction)
        return moved is not None

    @act
    async def begin_continuation(self, answer_id: int) -> Message:
        """Store a pending answer that begins as this one does, text and view, and takes its place.

        Raises what `Conversations.begin_regeneration` raises.
        """
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            new = await answers.supersede(transaction, answer_id, at=to_milliseconds(self._now()))
            (row,) = await transaction.fetch_all(
                "UPDATE messages SET (content, view_from) = "
                "(SELECT content, view_from FROM messages WHERE id = ?) WHERE id = ? RETURNING *",
                (answer_id, new.id),
            )
            return to_message(row)

    @act
    async def shorten_answer(self, answer_id: int, content: str) -> None:
        """Replace the text of an answer that has ended; with nothing left, the answer goes."""
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            if content.strip():
                await transaction.fetch_all(
                    "UPDATE messages SET content = ? WHERE id = ? AND state <> 'pending'",
                    (storable(content), answer_id),
                )
            else:
                await transaction.fetch_all(
                    "DELETE FROM messages WHERE id = ? AND role = 'assistant' AND state <> 'pending'",
                    (answer_id,),
                )
            await note_removed(transaction)
        await self._database.scrub()

    @act
    async def forget_quotes(self, discord_id: int) -> list[int]:
        """Forget what questions quote of a Discord message that was deleted; return their channels."""
        if not await self._database.fetch_all(_QUOTED_IN, (discord_id,)):
            return []  # as with almost every message: it costs no transaction
        async with self._database.transaction() as transaction:
            channels = await transaction.fetch_all(_QUOTED_IN, (discord_id,))
            await transaction.fetch_all("DELETE FROM quotes WHERE discord_id = ?", (discord_id,))
            await note_removed(transaction)
        return [row["channel_id"] for row in channels]

    @act
    async def newest(self, conversation_id: int) -> NewestTurn | None:
        """Return the newest turn, None in a conversation without any."""
        async with self._database.transaction(scopes.conversation(conversation_id)) as transaction:
            answer = await transaction.fetch_one(_NEWEST_ANSWER, (conversation_id,))
            if answer is None:
                return None
            questions = await _questions_of(transaction, answer)
            shown_by = await transaction.fetch_all(parts.OF_MESSAGE, (answer["id"],))
        asker_id = questions[-1]["author_id"] if questions else None
        return NewestTurn(to_message(answer), asker_id, tuple(row["discord_id"] for row in shown_by))

    @act
    async def undo(self, answer_id: int) -> int:
        """Delete an answer that has ended and the questions it answers; return how many messages went.

        Raises `NotFoundError` if it is gone, `AnswerPendingError` while it is being written.
        """
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            answer = await transaction.fetch_one("SELECT * FROM messages WHERE id = ?", (answer_id,))
            if answer is None:
                raise NotFoundError("This answer no longer exists.")
            if answer["state"] == MessageState.PENDING:
                raise AnswerPendingError
            gone = [answer["id"], *(row["id"] for row in await _questions_of(transaction, answer))]
            for message_id in gone:
                await transaction.fetch_all("DELETE FROM messages WHERE id = ?", (message_id,))
            await note_removed(transaction)
        await self._database.scrub()
        return len(gone)

    @act
    async def withdraw(self, answer_id: int) -> None:
        """Delete an answer of which nothing is there yet, with the questions of whoever it was to answer."""
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            answer = await transaction.fetch_one("SELECT * FROM messages WHERE id = ?", (answer_id,))
            questions = [] if answer is None else await _questions_of(transaction, answer)
            for question in questions:
                if question["author_id"] == questions[-1]["author_id"]:
                    await transaction.fetch_all("DELETE FROM messages WHERE id = ?", (question["id"],))
        await self._database.scrub()

    @act
    async def link(self, conversation_id: int, answer_discord_id: int) -> bool:
        """Let a conversation without messages go on from the answer that a Discord message shows.

        Only within one server. Returns whether there is such an answer.
        """
        async with self._database.transaction() as transaction:
            row = await transaction.fetch_one(_LINK, (conversation_id, answer_discord_id))
        return row is not None and row["continues_id"] is not None


async def insert_question(transaction: Transaction, conversation_id: int, question: NewQuestion) -> Message:
    """Store a question with its Discord message and its quotes."""
    at = to_milliseconds(question.created_at)
    name, content = storable(question.author_name), storable(question.content)
    (row,) = await transaction.fetch_all(
        _INSERT_QUESTION, (conversation_id, question.author_id, name, content, at, at)
    )
    await parts.attach(transaction, row["id"], question.discord_id, 0)
    for position, quote in enumerate(question.quotes):
        params = (row["id"], position, quote.discord_id, quote.author_id, storable(quote.author_name))
        await transaction.fetch_all(_INSERT_QUOTE, (*params, storable(quote.content)))
    return to_message(row)


async def _questions_of(transaction: Transaction, answer: Row) -> list[Row]:
    """Return the questions that an answer answers: all since the one that was answered before it."""
    return await transaction.fetch_all(_QUESTIONS_OF, (answer["conversation_id"], answer["reply_to"]))
