"""Resets and deleted questions: all of it goes, also from the files, and running answers end in silence."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from storage.conversations import Conversations, MessageState
from storage.database import Database
from storage.errors import NotFoundError
from storage.settings import SettingsStore
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, OTHER_CHANNEL, ask, asked_and_answered, contents, finish, num_rows

LATER = NOW + timedelta(minutes=10)
SECRET = "the treasure lies beneath the old oak"


def is_in_files(path: Path, text: str) -> bool:
    return any(text.encode() in entry.read_bytes() for entry in path.parent.iterdir())


async def test_a_reset_deletes_one_conversation_and_is_recorded(
    conversations: Conversations, database: Database
) -> None:
    turn = await asked_and_answered(conversations, 1)
    await asked_and_answered(conversations, 11)
    await asked_and_answered(conversations, 21, "stays", "too", ref=OTHER_CHANNEL)
    conversation_id = turn.question.conversation_id
    await SettingsStore(database).set(conversation_id, "top_k", 3, by_user_id=9, at=NOW)
    reset = await conversations.reset(conversation_id, by_user_id=9, at=NOW)
    assert reset.num_messages == 4
    assert await conversations.recent(conversation_id, 10) == []
    assert await conversations.purge_resets(before=LATER) == 1
    assert await num_rows(database, "messages") == 2
    assert await num_rows(database, "discord_messages") == 2
    (record,) = await database.fetch_all("SELECT * FROM resets")
    assert tuple(record)[1:5] == (conversation_id, 9, int(NOW.timestamp() * 1000), 4)
    assert await SettingsStore(database).all(conversation_id) == {"top_k": 3}
    # The same messages may come again, and the place is the same conversation.
    assert await conversations.open(CHANNEL) == conversation_id
    following = await ask(conversations, 1, "anew")
    assert await contents(conversations, following.answer.id) == ["anew"]
    assert following.question.id > turn.answer.id


async def test_a_reset_of_nothing_is_recorded_too(conversations: Conversations, database: Database) -> None:
    conversation_id = await conversations.open(CHANNEL)
    assert (await conversations.reset(conversation_id, by_user_id=9, at=NOW)).num_messages == 0
    assert await num_rows(database, "resets") == 1
    with pytest.raises(NotFoundError):
        await conversations.reset(999, by_user_id=9, at=NOW)
    assert await num_rows(database, "resets") == 1


async def test_an_answer_that_runs_over_a_reset_ends_in_silence(
    conversations: Conversations, database: Database
) -> None:
    turn = await ask(conversations, 1)
    await conversations.reset(turn.question.conversation_id, by_user_id=9, at=NOW)
    await conversations.purge_resets(before=LATER)
    assert not await conversations.checkpoint(turn.answer.id, "Beca")
    assert not await conversations.attach_part(turn.answer.id, 2, 0)
    assert await finish(conversations, turn.answer.id) is None
    with pytest.raises(NotFoundError):
        await conversations.history_before(turn.answer.id)
    with pytest.raises(NotFoundError):
        await conversations.begin_regeneration(turn.answer.id)
    assert await num_rows(database, "messages") == 0


async def test_a_reset_during_a_regeneration_leaves_nothing(
    conversations: Conversations, database: Database
) -> None:
    turn = await asked_and_answered(conversations, 1)
    new = await conversations.begin_regeneration(turn.answer.id)
    await conversations.reset(turn.question.conversation_id, by_user_id=9, at=NOW)
    await conversations.purge_resets(before=LATER)
    assert await finish(conversations, new.id, "", MessageState.FAILED) is None
    assert await num_rows(database, "messages") == 0


async def test_a_deleted_question_takes_its_answers_along(
    conversations: Conversations, database: Database
) -> None:
    await asked_and_answered(conversations, 1, "stays", "too")
    turn = await asked_and_answered(conversations, 11)
    new = await conversations.begin_regeneration(turn.answer.id)
    deleted = await conversations.delete_question(11)
    assert deleted is not None
    assert deleted.conversation_id == turn.question.conversation_id
    assert deleted.answer_ids == (turn.answer.id, new.id)
    assert await finish(conversations, new.id) is None
    assert await num_rows(database, "messages") == 2
    assert await num_rows(database, "discord_messages") == 2
    assert await conversations.delete_question(11) is None
    following = await ask(conversations, 21, "and?")
    assert await contents(conversations, following.answer.id) == ["stays", "too", "and?"]


async def test_a_deleted_message_that_is_no_question_deletes_nothing(
    conversations: Conversations, database: Database
) -> None:
    await asked_and_answered(conversations, 1)
    assert await conversations.delete_question(2) is None
    assert await conversations.delete_question(999) is None
    assert await num_rows(database, "messages") == 2


@pytest.mark.parametrize("act", ["reset", "delete"])
async def test_what_was_deleted_is_in_none_of_the_files(
    conversations: Conversations, path: Path, act: str
) -> None:
    turn = await asked_and_answered(conversations, 1, SECRET, SECRET)
    assert is_in_files(path, SECRET)
    if act == "reset":
        await conversations.reset(turn.question.conversation_id, by_user_id=9, at=NOW)
        await conversations.purge_resets(before=LATER)
    else:
        await conversations.delete_question(1)
    assert not is_in_files(path, SECRET)
