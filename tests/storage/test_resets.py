"""Resets that can be undone: put aside, brought back once and in time, purged, and never seen meanwhile."""

from __future__ import annotations

from datetime import timedelta

import pytest

from storage.conversations import Conversations
from storage.database import Database
from storage.errors import NotFoundError
from tests.storage.conftest import NOW
from tests.storage.steps import OTHER_CHANNEL, ask, asked_and_answered, contents, finish, num_rows

LATER = NOW + timedelta(minutes=10)


async def undo(conversations: Conversations, reset_id: int) -> int:
    reset = await conversations.undo_reset(reset_id, by_user_id=8, at=LATER, not_before=NOW)
    return reset.num_messages


async def test_what_was_put_aside_comes_back_before_what_came_since(conversations: Conversations) -> None:
    turn = await asked_and_answered(conversations, 1, "one", "two")
    reset = await conversations.reset(turn.question.conversation_id, by_user_id=9, at=NOW)
    await asked_and_answered(conversations, 11, "three", "four")
    assert await undo(conversations, reset.id) == 2
    following = await ask(conversations, 21, "five")
    assert await contents(conversations, following.answer.id) == ["one", "two", "three", "four", "five"]


async def test_nothing_of_it_is_seen_meanwhile(conversations: Conversations) -> None:
    turn = await asked_and_answered(conversations, 1, "one", "two")
    conversation_id = turn.question.conversation_id
    await conversations.reset(conversation_id, by_user_id=9, at=NOW)
    following = await ask(conversations, 11, "three")
    assert await contents(conversations, following.answer.id) == ["three"]
    assert [m.content for m in await conversations.recent(conversation_id, 10)] == ["three", ""]
    with pytest.raises(NotFoundError):
        await conversations.begin_regeneration(turn.answer.id)


async def test_a_reset_is_undone_once(conversations: Conversations, database: Database) -> None:
    turn = await asked_and_answered(conversations, 1)
    reset = await conversations.reset(turn.question.conversation_id, by_user_id=9, at=NOW)
    await undo(conversations, reset.id)
    with pytest.raises(NotFoundError, match="no longer be undone"):
        await undo(conversations, reset.id)
    (record,) = await database.fetch_all("SELECT * FROM resets")
    assert (record["by_user_id"], record["undone_by_user_id"]) == (9, 8)
    assert record["undone_at"] == int(LATER.timestamp() * 1000)
    assert await num_rows(database, "conversations") == 1


async def test_two_resets_are_undone_one_after_the_other(conversations: Conversations) -> None:
    turn = await asked_and_answered(conversations, 1, "one", "two")
    conversation_id = turn.question.conversation_id
    first = await conversations.reset(conversation_id, by_user_id=9, at=NOW)
    await asked_and_answered(conversations, 11, "three", "four")
    second = await conversations.reset(conversation_id, by_user_id=9, at=NOW)
    for expected in (second, first):
        assert await conversations.newest_reset(conversation_id) == expected
        await undo(conversations, expected.id)
    assert await conversations.newest_reset(conversation_id) is None
    assert [m.content for m in await conversations.recent(conversation_id, 10)] == [
        "one", "two", "three", "four",
    ]  # fmt: skip


async def test_too_late_is_too_late(conversations: Conversations, database: Database) -> None:
    turn = await asked_and_answered(conversations, 1)
    await asked_and_answered(conversations, 11, ref=OTHER_CHANNEL)
    reset = await conversations.reset(turn.question.conversation_id, by_user_id=9, at=NOW)
    with pytest.raises(NotFoundError):
        await conversations.undo_reset(reset.id, by_user_id=9, at=LATER, not_before=LATER)
    assert await conversations.purge_resets(before=NOW) == 0
    assert await conversations.purge_resets(before=LATER) == 1
    with pytest.raises(NotFoundError):
        await undo(conversations, reset.id)
    assert await num_rows(database, "messages") == 2


async def test_an_answer_that_runs_over_a_reset_is_put_aside_with_its_end(
    conversations: Conversations,
) -> None:
    turn = await ask(conversations, 1, "one")
    reset = await conversations.reset(turn.question.conversation_id, by_user_id=9, at=NOW)
    await finish(conversations, turn.answer.id, "two")
    assert await conversations.recent(turn.question.conversation_id, 10) == []
    await undo(conversations, reset.id)
    recent = await conversations.recent(turn.question.conversation_id, 10)
    assert [m.content for m in recent] == ["one", "two"]


async def test_what_is_put_aside_goes_for_good_when_its_conversation_does(
    conversations: Conversations, database: Database
) -> None:
    turn = await asked_and_answered(conversations, 1)
    await conversations.reset(turn.question.conversation_id, by_user_id=9, at=NOW)
    await database.fetch_all("DELETE FROM conversations WHERE id = ?", (turn.question.conversation_id,))
    assert await conversations.purge_resets(before=NOW) == 1
    assert await num_rows(database, "messages") == 0
