"""What the storage's tests do again and again."""

from __future__ import annotations

from storage.conversations import (
    ConversationKind,
    ConversationRef,
    Conversations,
    Message,
    MessageState,
    Turn,
)
from storage.database import Database
from tests.storage.conftest import NOW

CHANNEL = ConversationRef(channel_id=100, kind=ConversationKind.CHANNEL, guild_id=7)
OTHER_CHANNEL = ConversationRef(channel_id=200, kind=ConversationKind.THREAD, guild_id=7)


async def ask(
    conversations: Conversations, discord_id: int, content: str = "Why?", ref: ConversationRef = CHANNEL
) -> Turn:
    """Begin a turn in `ref`."""
    return await conversations.begin_turn(
        await conversations.open(ref),
        discord_id=discord_id,
        author_id=42,
        author_name="Ada",
        content=content,
        created_at=NOW,
    )


async def finish(
    conversations: Conversations,
    answer_id: int,
    content: str = "Because.",
    state: MessageState = MessageState.COMPLETE,
) -> Message | None:
    """End an answer."""
    return await conversations.finish_answer(
        answer_id, content=content, state=state, finish_reason="stop", num_prompt_tokens=20, num_tokens=3
    )


async def asked_and_answered(
    conversations: Conversations,
    discord_id: int,
    question: str = "Why?",
    answer: str = "Because.",
    state: MessageState = MessageState.COMPLETE,
    ref: ConversationRef = CHANNEL,
) -> Turn:
    """Store a whole turn; the answer is shown by one Discord message, `discord_id` + 1."""
    turn = await ask(conversations, discord_id, question, ref)
    await conversations.attach_part(turn.answer.id, discord_id + 1, 0)
    await finish(conversations, turn.answer.id, answer, state)
    return turn


async def num_rows(database: Database, table: str) -> int:
    """Count the rows of a table."""
    (row,) = await database.fetch_all(f"SELECT count(*) FROM {table}")  # noqa: S608
    return int(row[0])


async def contents(conversations: Conversations, answer_id: int) -> list[str]:
    """Return the texts that the model may see for an answer."""
    return [message.content for message in await conversations.history_before(answer_id)]
