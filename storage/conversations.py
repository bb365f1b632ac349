"""The conversations: questions, answers and the Discord messages that show them.

Each act is one transaction. Knows nothing of Discord's library, prompts or generation: only what was said,
by whom, and how each answer ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from storage import answers, history, parts, resets, scopes
from storage.answers import Ending
from storage.database import Database, Row, act
from storage.errors import NotFoundError
from storage.removals import note_removed
from storage.resets import Reset
from storage.shards import EVERYTHING, Shards
from storage.summaries import Summaries
from storage.turns import NewQuestion, Turns, insert_question
from storage.types import (
    Asked,
    ConversationKind,
    ConversationRef,
    Deleted,
    InterruptedAnswer,
    Message,
    MessageState,
    Quote,
    Role,
    Turn,
    from_milliseconds,
    storable,
    to_message,
    to_milliseconds,
    utc_now,
)

__all__ = [
    "ConversationKind",
    "ConversationRef",
    "Conversations",
    "Deleted",
    "InterruptedAnswer",
    "Message",
    "MessageState",
    "Quote",
    "Role",
    "Turn",
]

_OPEN = """
INSERT INTO conversations (channel_id, kind, guild_id, created_at) VALUES (?, ?, ?, ?)
ON CONFLICT (channel_id) DO UPDATE SET kind = excluded.kind, guild_id = excluded.guild_id
RETURNING id"""
# An answer to several questions in a row stays while one of them is there.
_HAND_BACK = """
UPDATE messages SET reply_to = (
    SELECT max(id) FROM messages AS earlier
    WHERE conversation_id = ?1 AND role = 'user' AND author_id = ?3 AND id < ?2
    AND id > coalesce((
        SELECT max(reply_to) FROM messages
        WHERE conversation_id = ?1 AND role = 'assistant' AND reply_to < ?2), 0))
WHERE reply_to = ?2 AND EXISTS (
    SELECT 1 FROM messages AS earlier
    WHERE conversation_id = ?1 AND role = 'user' AND author_id = ?3 AND id < ?2
    AND id > coalesce((
        SELECT max(reply_to) FROM messages
        WHERE conversation_id = ?1 AND role = 'assistant' AND reply_to < ?2), 0))"""


class Conversations:
    """All that was said, over one database. shards: whose sweeps and repairs are ours."""

    def __init__(
        self, database: Database, *, now: Callable[[], datetime] = utc_now, shards: Shards = EVERYTHING
    ) -> None:
        self.shards = shards
        self.turns = Turns(database, now=now)
        self.summaries = Summaries(database, now=now)
        self._database = database
        self._now = now

    @act
    async def open(self, ref: ConversationRef) -> int:
        """Return the id of the conversation in this place, which is made if there is none yet."""
        row = await self._database.fetch_one(
            "SELECT id FROM conversations"
            " WHERE channel_id = ? AND kind = ? AND coalesce(guild_id, 0) = coalesce(?, 0)",
            (ref.channel_id, ref.kind, ref.guild_id),
        )
        if row is not None:
            return int(row["id"])
        async with self._database.transaction() as transaction:
            params = (ref.channel_id, ref.kind, ref.guild_id, self._milliseconds())
            (row,) = await transaction.fetch_all(_OPEN, params)
            return int(row["id"])

    async def find(self, ref: ConversationRef) -> int | None:
        """Return the id of the conversation in this place, None if nothing was said or set there yet."""
        row = await self._database.fetch_one(
            "SELECT id FROM conversations WHERE channel_id = ?", (ref.channel_id,)
        )
        return None if row is None else int(row["id"])

    @act
    async def delete(self, channel_id: int) -> None:
        """Delete the conversation in a place, with all that was said and set there."""
        async with self._database.transaction() as transaction:
            await transaction.fetch_all("DELETE FROM conversations WHERE channel_id = ?", (channel_id,))
            await note_removed(transaction)
        await self._database.scrub()

    async def ref_of(self, conversation_id: int) -> ConversationRef:
        """Return the place of a conversation. Raises `NotFoundError` if it is gone."""
        row = await self._database.fetch_one(
            "SELECT channel_id, kind, guild_id FROM conversations WHERE id = ?", (conversation_id,)
        )
        if row is None:
            raise NotFoundError
        return ConversationRef(row["channel_id"], ConversationKind(row["kind"]), row["guild_id"])

    async def server_of(self, conversation_id: int) -> int | None:
        """Return the server that a conversation is in, None for a direct message."""
        row = await self._database.fetch_one(
            "SELECT guild_id FROM conversations WHERE id = ?", (conversation_id,)
        )
        return None if row is None else row["guild_id"]

    @act
    async def begin_turn(
        self,
        conversation_id: int,
        *,
        discord_id: int,
        author_id: int,
        author_name: str,
        content: str,
        created_at: datetime,
        quotes: tuple[Quote, ...] = (),
    ) -> Turn:
        """Store a question and its empty answer.

        Raises `DuplicateMessageError` if the Discord message is known, `NotFoundError` if the conversation
        is not.
        """
        new = NewQuestion(discord_id, author_id, author_name, content, created_at, quotes)
        async with self._database.transaction(scopes.conversation(conversation_id)) as transaction:
            await parts.refuse_known(transaction, discord_id)
            question = await insert_question(transaction, conversation_id, new)
            answer = await answers.insert_pending(
                transaction,
                conversation_id=conversation_id,
                question_id=question.id,
                at=self._milliseconds(),
            )
            return Turn(question, answer)

    @act
    async def begin_regeneration(self, answer_id: int) -> Message:
        """Store a new empty answer in the place of this one; its Discord messages now show the new one.

        The old answer is kept, out of sight, until the new one ended. Raises `NotFoundError` if it is gone,
        `AnswerPendingError` or `NotNewestAnswerError` if it cannot be regenerated.
        """
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            return await answers.supersede(transaction, answer_id, at=self._milliseconds())

    @act
    async def attach_part(self, message_id: int, discord_id: int, position: int) -> bool:
        """Record that a Discord message shows part of a message: at `position`, or behind all others where
        one is there already. What is being regenerated has given its place, and its parts, to the new answer.

        Returns False if the message was deleted meanwhile. Raises `DuplicateMessageError` if the Discord
        message belongs to another one.
        """
        try:
            async with self._database.transaction(scopes.conversation_of(message_id)) as transaction:
                await answers.attach_part(transaction, message_id, discord_id, position)
        except NotFoundError:
            return False
        return True

    @act
    async def detach_part(self, discord_id: int) -> None:
        """Forget a deleted Discord message that showed part of an answer; the later parts move up."""
        async with self._database.transaction(scopes.conversation_showing(discord_id)) as transaction:
            await parts.detach(transaction, discord_id)

    async def parts(self, message_id: int) -> list[int]:
        """Return the Discord ids of the messages that show a message, in order."""
        rows = await self._database.fetch_all(parts.OF_MESSAGE, (message_id,))
        return [row["discord_id"] for row in rows]

    @act
    async def checkpoint(self, answer_id: int, content: str) -> bool:
        """Store what was shown of a running answer so far; False if it is not running any more."""
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            rows = await transaction.fetch_all(
                "UPDATE messages SET content = ? WHERE id = ? AND state = 'pending' RETURNING id",
                (storable(content), answer_id),
            )
            return bool(rows)

    @act
    async def finish_answer(
        self,
        answer_id: int,
        *,
        content: str,
        state: MessageState,
        finish_reason: str | None,
        num_prompt_tokens: int | None,
        num_tokens: int | None,
        view_from: int | None = None,
        note: str | None = None,
    ) -> Message | None:
        """End a running answer, to be shown with `note`; return the answer that stands now.

        `view_from`: the first message that the model saw, where older ones were left out.

        That is the ended one, or the one it was to replace if a regeneration broke off with nothing to
        show. Returns None, and changes nothing, if the answer was deleted or had ended already.
        """
        at = self._milliseconds()
        ending = Ending(
            answer_id, content, state, at, finish_reason, num_prompt_tokens, num_tokens, view_from, note
        )
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            return await answers.end(transaction, ending)

    async def history_before(self, answer_id: int, *, limit: int = 200) -> list[Message]:
        """Return what the model may see for this answer: earlier messages, then its question, oldest first.

        All questions, and answers that are complete, stopped or interrupted, have text and are not being
        replaced; at most the newest `limit`. Raises `NotFoundError` if the answer is gone.
        """
        return await history.history_before(self._database, answer_id, limit)

    async def history_next(self, conversation_id: int, *, limit: int) -> list[Message]:
        """Return the newest `limit` messages that the model may see before the next question, in order."""
        return await history.history_next(self._database, conversation_id, limit)

    async def asked_since(self, since: datetime) -> list[Asked]:
        """Return how much was asked since then, in each of our conversations that may go on."""
        asked = history.ASKED_SINCE.format(ours=self.shards.condition("guild_id"))
        rows = await self._database.fetch_all(asked, (to_milliseconds(since),))
        return [
            Asked(row["conversation"], row["num_questions"], from_milliseconds(row["last_at"]))
            for row in rows
        ]

    async def recent(self, conversation_id: int, limit: int) -> list[Message]:
        """Return the newest `limit` messages in any state, oldest first."""
        return await history.recent(self._database, conversation_id, limit)

    async def beyond_memory(self, channel_id: int, discord_ids: Collection[int]) -> set[int]:
        """Return those of a channel's messages that are not stored, and were not there at its last reset."""
        return await history.beyond_memory(self._database, channel_id, discord_ids)

    async def find_answer(self, answer_id: int) -> Message | None:
        """Return the answer with this id."""
        return _message_or_none(
            await self._database.fetch_one(
                "SELECT * FROM messages WHERE id = ? AND role = 'assistant'", (answer_id,)
            )
        )

    async def find_by_discord_id(self, discord_id: int) -> Message | None:
        """Return the question or answer that a Discord message shows."""
        return _message_or_none(await self._database.fetch_one(parts.SHOWN_MESSAGE, (discord_id,)))

    @act
    async def interrupt_pending(self) -> list[InterruptedAnswer]:
        """End every answer of ours that is still pending, with what was shown of it. Call once, at start."""
        async with self._database.transaction() as transaction:
            return await answers.interrupt(transaction, self.shards, at=self._milliseconds())

    @act
    async def note_shown(self, answer_id: int) -> None:
        """Record that the ending of an answer is shown, or never can be."""
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            await parts.note_shown(transaction, answer_id)

    @act
    async def unshown(self, *, within: timedelta, limit: int) -> list[InterruptedAnswer]:
        """Return our newest answers that ended `within` this time and may not be shown so, oldest first."""
        after = to_milliseconds(self._now() - within)
        async with self._database.transaction() as transaction:
            return await parts.newest_unshown(transaction, self.shards, ended_after=after, limit=limit)

    @act
    async def find_unshown(self, answer_id: int) -> InterruptedAnswer | None:
        """Return an answer if it stands, and its ending may not be shown."""
        async with self._database.transaction(scopes.conversation_of(answer_id)) as transaction:
            return await parts.find_unshown(transaction, answer_id)

    @act
    async def reset(self, conversation_id: int, *, by_user_id: int, at: datetime) -> Reset:
        """Put all messages aside and record who did it. Raises `NotFoundError`."""
        async with self._database.transaction() as transaction:
            return await resets.put_aside(
                transaction, conversation_id, by_user_id=by_user_id, at=to_milliseconds(at)
            )

    @act
    async def newest_reset(self, conversation_id: int) -> Reset | None:
        """Return the newest reset whose messages are still there."""
        async with self._database.transaction() as transaction:
            return await resets.newest(transaction, conversation_id)

    @act
    async def find_reset(self, reset_id: int) -> Reset:
        """Return a reset. Raises `NotFoundError`."""
        async with self._database.transaction() as transaction:
            return await resets.find(transaction, reset_id)

    @act
    async def undo_reset(
        self, reset_id: int, *, by_user_id: int, at: datetime, not_before: datetime
    ) -> Reset:
        """Bring the messages of a reset back. Raises `NotFoundError` where that is not possible any more."""
        async with self._database.transaction() as transaction:
            return await resets.bring_back(
                transaction,
                reset_id,
                by_user_id=by_user_id,
                at=to_milliseconds(at),
                not_before=to_milliseconds(not_before),
            )

    @act
    async def purge_resets(self, *, before: datetime) -> int:
        """Delete for good what was put aside of ours before a time; return how many resets that ends."""
        async with self._database.transaction() as transaction:
            num_purged = await resets.purge(transaction, self.shards, before=to_milliseconds(before))
            if num_purged:
                await note_removed(transaction)
        if num_purged:
            await self._database.scrub()
        return num_purged

    @act
    async def delete_question(self, discord_id: int) -> Deleted | None:
        """Delete the question in this Discord message with its answers; None if there is none."""
        async with self._database.transaction(scopes.conversation_showing(discord_id)) as transaction:
            row = await transaction.fetch_one(parts.SHOWN_MESSAGE, (discord_id,))
            if row is None or row["role"] != Role.USER:
                return None
            await transaction.fetch_all(_HAND_BACK, (row["conversation_id"], row["id"], row["author_id"]))
            found = await transaction.fetch_all(
                "SELECT id FROM messages WHERE reply_to = ? ORDER BY id", (row["id"],)
            )
            await transaction.fetch_all("DELETE FROM messages WHERE id = ?", (row["id"],))
            await note_removed(transaction)
        await self._database.scrub()
        return Deleted(row["conversation_id"], tuple(answer["id"] for answer in found))

    def _milliseconds(self) -> int:
        return to_milliseconds(self._now())


def _message_or_none(row: Row | None) -> Message | None:
    return None if row is None else to_message(row)
