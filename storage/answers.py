"""The life of an answer inside a transaction: begun, regenerated, ended exactly once.

An answer that is being regenerated stays, superseded, until the new one ended: then it is deleted, or it
comes back if the new one has nothing to show. Knows nothing of locks or of who calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage import parts
from storage.database import Row, Transaction
from storage.errors import AnswerPendingError, NotFoundError, NotNewestAnswerError
from storage.resets import IS_SHELVED
from storage.shards import Shards
from storage.types import InterruptedAnswer, Message, MessageState, storable, to_message

_INSERT = """
INSERT INTO messages (conversation_id, role, state, author_name, content, created_at, reply_to)
VALUES (?, 'assistant', 'pending', '', '', ?, ?) RETURNING *"""
NEWEST = """
SELECT id, state FROM messages WHERE conversation_id = ? AND role = 'assistant' ORDER BY id DESC LIMIT 1"""
_END = """
UPDATE messages
SET content = ?, state = ?, finish_reason = ?, num_prompt_tokens = ?, num_tokens = ?, view_from = ?,
    ended_at = ?
WHERE id = ? AND state = 'pending' RETURNING *"""
PENDING = """
SELECT messages.id, content FROM messages JOIN conversations ON conversations.id = conversation_id
WHERE state = 'pending' AND {ours} ORDER BY messages.id"""
SUPERSEDED = "SELECT * FROM messages WHERE superseded_by = ?"


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended. `at` in milliseconds since 1970."""

    answer_id: int
    content: str
    state: MessageState
    at: int
    finish_reason: str | None = None
    num_prompt_tokens: int | None = None
    num_tokens: int | None = None
    view_from: int | None = None
    note: str | None = None
    """What is to be shown below it, in whatever form the caller has."""

    def __post_init__(self) -> None:
        if self.state is MessageState.PENDING:
            raise ValueError("An answer cannot end as pending.")

    @property
    def has_nothing_to_show(self) -> bool:
        """Whether it broke off before anything was written."""
        return self.state is not MessageState.COMPLETE and not self.content.strip()


async def insert_pending(
    transaction: Transaction, *, conversation_id: int, question_id: int, at: int
) -> Message:
    """Store an empty answer."""
    (row,) = await transaction.fetch_all(_INSERT, (conversation_id, at, question_id))
    return to_message(row)


async def supersede(transaction: Transaction, answer_id: int, *, at: int) -> Message:
    """Store a new pending answer in the place of the newest one and move its Discord messages there."""
    old = await _regenerable(transaction, answer_id)
    new = await insert_pending(
        transaction, conversation_id=old["conversation_id"], question_id=old["reply_to"], at=at
    )
    await transaction.fetch_all("UPDATE messages SET superseded_by = ? WHERE id = ?", (new.id, answer_id))
    await parts.move(transaction, from_id=answer_id, to_id=new.id)
    await _move_threads(transaction, from_id=answer_id, to_id=new.id)
    return new


async def end(transaction: Transaction, ending: Ending) -> Message | None:
    """End a pending answer; return the answer that stands now, or None if there was none to end."""
    row = await transaction.fetch_one(
        _END,
        (
            storable(ending.content),
            ending.state,
            ending.finish_reason,
            ending.num_prompt_tokens,
            ending.num_tokens,
            ending.view_from,
            ending.at,
            ending.answer_id,
        ),
    )
    if row is None:
        return None
    old = await transaction.fetch_one(SUPERSEDED, (ending.answer_id,))
    standing = row
    if old is not None and ending.has_nothing_to_show:
        await _replace(transaction, gone_id=ending.answer_id, kept_id=old["id"])
        standing = old
    elif old is not None:
        await _replace(transaction, gone_id=old["id"], kept_id=ending.answer_id)
    await parts.note_unshown(transaction, standing["id"], ending.note)
    return to_message(standing)


async def attach_part(transaction: Transaction, answer_id: int, discord_id: int, position: int) -> None:
    """Record a Discord message that shows part of an answer, or of the one that is to take its place.

    A part may arrive after "Regenerate" was pressed. All parts are then the new answer's, so this one is too.
    """
    row = await transaction.fetch_one("SELECT superseded_by FROM messages WHERE id = ?", (answer_id,))
    standing_id = answer_id if row is None else row["superseded_by"] or answer_id
    await parts.attach(transaction, standing_id, discord_id, position)


async def interrupt(transaction: Transaction, shards: Shards, *, at: int) -> list[InterruptedAnswer]:
    """End every pending answer of ours with the text it has; return what stands now in their places."""
    interrupted = []
    for row in await transaction.fetch_all(PENDING.format(ours=shards.condition("guild_id"))):
        answer = await end(transaction, Ending(row["id"], row["content"], MessageState.INTERRUPTED, at))
        if answer is not None:
            interrupted.append(await parts.located(transaction, answer))
    return interrupted


async def _regenerable(transaction: Transaction, answer_id: int) -> Row:
    old = await transaction.fetch_one(
        "SELECT conversation_id, reply_to, superseded_by FROM messages WHERE id = ? AND role = 'assistant'",
        (answer_id,),
    )
    if old is None or await transaction.fetch_one(IS_SHELVED, (old["conversation_id"],)):
        raise NotFoundError("This answer no longer exists.")
    newest = await transaction.fetch_one(NEWEST, (old["conversation_id"],))
    if newest is None or newest["id"] not in (answer_id, old["superseded_by"]):
        raise NotNewestAnswerError
    if newest["state"] == MessageState.PENDING:
        raise AnswerPendingError
    return old


async def _replace(transaction: Transaction, *, gone_id: int, kept_id: int) -> None:
    await parts.move(transaction, from_id=gone_id, to_id=kept_id)
    await _move_threads(transaction, from_id=gone_id, to_id=kept_id)
    await transaction.fetch_all("DELETE FROM messages WHERE id = ?", (gone_id,))


async def _move_threads(transaction: Transaction, *, from_id: int, to_id: int) -> None:
    """Let the threads that were started from one answer go on from the one in its place."""
    await transaction.fetch_all(
        "UPDATE conversations SET continues_id = ? WHERE continues_id = ?", (to_id, from_id)
    )
