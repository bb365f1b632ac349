"""What the model may see for an answer, and that finding it takes no scan."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import answers, history, parts
from storage.conversations import Conversations, MessageState
from storage.database import Database
from storage.errors import NotFoundError
from storage.shards import EVERYTHING
from tests.storage.steps import OTHER_CHANNEL, ask, asked_and_answered, contents, finish


async def test_it_is_the_conversation_up_to_the_question_oldest_first(conversations: Conversations) -> None:
    await asked_and_answered(conversations, 1, "one", "first")
    await asked_and_answered(conversations, 11, "two", "second")
    turn = await ask(conversations, 21, "three")
    later = await ask(conversations, 31, "four")
    assert await contents(conversations, turn.answer.id) == ["one", "first", "two", "second", "three"]
    await finish(conversations, turn.answer.id, "third")
    assert (await contents(conversations, later.answer.id))[-3:] == ["three", "third", "four"]


async def test_channels_never_see_each_other(conversations: Conversations) -> None:
    await asked_and_answered(conversations, 1, "secret", "hidden")
    turn = await ask(conversations, 11, "hello", OTHER_CHANNEL)
    assert await contents(conversations, turn.answer.id) == ["hello"]


@pytest.mark.parametrize(
    ("state", "text", "is_seen"),
    [
        (MessageState.COMPLETE, "text", True),
        (MessageState.STOPPED, "text", True),
        (MessageState.INTERRUPTED, "text", True),
        (MessageState.FAILED, "text", False),
        (MessageState.COMPLETE, "", False),
        (MessageState.STOPPED, "", False),
    ],
)
async def test_answers_are_seen_if_they_ended_well_enough_and_have_text(
    conversations: Conversations, state: MessageState, text: str, is_seen: bool
) -> None:
    await asked_and_answered(conversations, 1, "one", text, state)
    turn = await ask(conversations, 11, "two")
    assert await contents(conversations, turn.answer.id) == ["one", *([text] if is_seen else []), "two"]


async def test_questions_in_a_row_count_while_their_answers_are_pending(conversations: Conversations) -> None:
    first = await ask(conversations, 1, "one")
    await conversations.checkpoint(first.answer.id, "half")
    second = await ask(conversations, 11, "two")
    assert await contents(conversations, second.answer.id) == ["one", "two"]
    assert await contents(conversations, first.answer.id) == ["one"]


async def test_the_limit_keeps_the_newest(conversations: Conversations) -> None:
    for number in range(5):
        await asked_and_answered(conversations, 10 * number, f"q{number}", f"a{number}")
    turn = await ask(conversations, 100, "last")
    seen = await conversations.history_before(turn.answer.id, limit=3)
    assert [message.content for message in seen] == ["q4", "a4", "last"]
    newest = await conversations.recent(turn.question.conversation_id, 2)
    assert newest == [turn.question, turn.answer]


async def test_an_answer_that_is_gone_has_no_history(conversations: Conversations) -> None:
    turn = await ask(conversations, 1)
    await conversations.delete_question(1)
    with pytest.raises(NotFoundError):
        await conversations.history_before(turn.answer.id)
    with pytest.raises(NotFoundError):
        await conversations.history_before(999)


STATEMENTS = (
    history.VISIBLE_TO_MODEL,
    history.VISIBLE_BEFORE_THREAD,
    history.NEWEST,
    parts.SHOWN_MESSAGE,
    parts.OF_MESSAGE,
    answers.NEWEST,
    answers.PENDING.format(ours=EVERYTHING.condition("guild_id")),
    answers.SUPERSEDED,
    # A plan of a deletion lists the look-ups of its foreign keys too.
    "DELETE FROM messages WHERE id = ?",
    "DELETE FROM messages WHERE conversation_id = ?",
    "DELETE FROM conversations WHERE id = ?",
)


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_no_statement_scans_a_table_or_sorts(database: Database, path: Path, statement: str) -> None:
    params = (1,) * statement.count("?")
    plan = [row["detail"] for row in await database.fetch_all("EXPLAIN QUERY PLAN " + statement, params)]
    assert plan
    assert not [
        step
        for step in plan
        if not step.startswith(("SEARCH ", "CORRELATED ", "SCALAR ", "SCAN last", "MATERIALIZE last"))
    ], plan


async def test_a_long_channel_gives_its_newest_messages(
    conversations: Conversations, database: Database
) -> None:
    short = await ask(conversations, 1, "short", OTHER_CHANNEL)
    conversation_id = (await asked_and_answered(conversations, 11)).question.conversation_id
    async with database.transaction() as transaction:
        await transaction.fetch_all(
            """
            WITH RECURSIVE counter (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < 20000)
            INSERT INTO messages
                (conversation_id, role, state, author_id, author_name, content, created_at, ended_at)
            SELECT ?, 'user', 'complete', 42, 'Ada', 'text ' || n, 0, 0 FROM counter""",
            (conversation_id,),
        )
    turn = await ask(conversations, 21, "last")
    seen = await conversations.history_before(turn.answer.id)
    assert len(seen) == 200
    assert [message.content for message in seen[-2:]] == ["text 20000", "last"]
    assert await contents(conversations, short.answer.id) == ["short"]
