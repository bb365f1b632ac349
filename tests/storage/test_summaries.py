"""Summaries go with what they sum up, on every way by which that goes, and come back with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from storage.conversations import Conversations, Message
from storage.database import Database
from storage.people import People
from storage.retention import Place, Retention
from storage.summaries import MAX_KEPT
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, OTHER_CHANNEL, ask, asked_and_answered, finish, num_rows

Parts = tuple[Database, Conversations]


async def summed_up(conversations: Conversations, *, num_turns: int = 3) -> int:
    """Store turns, all but the last one summed up; return the conversation."""
    for number in range(num_turns):
        await asked_and_answered(conversations, 10 * (number + 1), f"question {number}")
    conversation_id = await conversations.open(CHANNEL)
    messages = await conversations.recent(conversation_id, 100)
    assert await conversations.summaries.add(conversation_id, messages[:-2], messages[-2].id, "In short.")
    return conversation_id


async def texts(conversations: Conversations, conversation_id: int) -> list[str]:
    return [summary.content for summary in await conversations.summaries.of(conversation_id)]


async def delete_question(database: Database, conversations: Conversations) -> None:
    await conversations.delete_question(20)


async def edit_question(database: Database, conversations: Conversations) -> None:
    await conversations.turns.edit_question(20, "Something else")


async def shorten_answer(database: Database, conversations: Conversations) -> None:
    answer = await conversations.find_by_discord_id(11)
    assert answer is not None
    await conversations.turns.shorten_answer(answer.id, "Be")


async def delete_answer(database: Database, conversations: Conversations) -> None:
    answer = await conversations.find_by_discord_id(11)
    assert answer is not None
    await conversations.turns.shorten_answer(answer.id, "")


async def forget_person(database: Database, conversations: Conversations) -> None:
    await People(database).forget(42)


async def undo(database: Database, conversations: Conversations) -> None:
    for discord_id in (31, 21):
        answer = await conversations.find_by_discord_id(discord_id)
        assert answer is not None
        await conversations.turns.undo(answer.id)


async def grow_old(database: Database, conversations: Conversations) -> None:
    await Retention(database).delete_older(NOW + timedelta(days=1))


async def leave_server(database: Database, conversations: Conversations) -> None:
    retention = Retention(database, now=lambda: NOW)
    await retention.mark_gone(Place.SERVER, 7)
    while await retention.delete_gone(gone_before=NOW + timedelta(days=1)):
        pass


async def delete_conversation(database: Database, conversations: Conversations) -> None:
    await conversations.delete(CHANNEL.channel_id)


async def reset_for_good(database: Database, conversations: Conversations) -> None:
    await conversations.reset(await conversations.open(CHANNEL), by_user_id=1, at=NOW)
    await conversations.purge_resets(before=NOW + timedelta(days=1))


WAYS = [
    *(delete_question, edit_question, shorten_answer, delete_answer, forget_person, undo, grow_old),
    *(leave_server, delete_conversation, reset_for_good),
]


@pytest.mark.parametrize("go", WAYS)
async def test_a_summary_goes_with_what_it_sums_up(
    database: Database, conversations: Conversations, go: Callable[[Database, Conversations], Awaitable[None]]
) -> None:
    await summed_up(conversations)
    await go(database, conversations)
    assert await num_rows(database, "summaries") == 0
    assert await num_rows(database, "summed_up") == 0


async def test_it_goes_with_what_one_of_its_messages_quotes(
    database: Database, conversations: Conversations
) -> None:
    conversation_id = await summed_up(conversations)
    (first, *_) = await conversations.recent(conversation_id, 100)
    async with database.transaction() as transaction:
        await transaction.fetch_all("INSERT INTO quotes VALUES (?, 0, 9, 8, 'Bob', 'said')", (first.id,))
    await conversations.turns.forget_quotes(9)
    assert await texts(conversations, conversation_id) == []


async def test_it_stays_when_other_messages_go(conversations: Conversations) -> None:
    conversation_id = await summed_up(conversations)
    await conversations.delete_question(30)
    assert await texts(conversations, conversation_id) == ["In short."]


async def test_a_reset_puts_it_aside_and_its_undoing_brings_it_back(conversations: Conversations) -> None:
    conversation_id = await summed_up(conversations)
    reset = await conversations.reset(conversation_id, by_user_id=1, at=NOW)
    assert await texts(conversations, conversation_id) == []
    await conversations.undo_reset(reset.id, by_user_id=1, at=NOW, not_before=NOW)
    assert await texts(conversations, conversation_id) == ["In short."]


async def test_one_of_what_is_not_said_so_any_more_is_not_kept(conversations: Conversations) -> None:
    conversation_id = await summed_up(conversations)
    messages = await conversations.recent(conversation_id, 100)

    async def add(of: list[Message]) -> bool:
        return await conversations.summaries.add(conversation_id, of, messages[-1].id + 1, "Late.")

    assert await add(messages)
    await conversations.turns.edit_question(30, "Something else")
    assert not await add(messages)
    await conversations.delete_question(30)
    assert not await add(messages[-2:])
    await conversations.reset(conversation_id, by_user_id=1, at=NOW)
    assert not await add(messages[:2])


async def test_a_deleted_one_leaves_an_empty_one(conversations: Conversations) -> None:
    conversation_id = await summed_up(conversations)
    assert await conversations.summaries.delete(conversation_id) == 1
    assert await texts(conversations, conversation_id) == [""]
    assert await conversations.summaries.delete(conversation_id) == 0
    await conversations.delete_question(10)
    assert await texts(conversations, conversation_id) == []


async def test_the_newest_ones_are_kept(conversations: Conversations) -> None:
    conversation_id = await summed_up(conversations)
    messages = await conversations.recent(conversation_id, 2)
    for number in range(MAX_KEPT + 3):
        await conversations.summaries.add(conversation_id, messages, 100 + number, str(number))
    assert await texts(conversations, conversation_id) == [str(n) for n in range(3, MAX_KEPT + 3)]


async def test_a_thread_has_those_of_what_it_goes_on_from_and_no_later_ones(
    conversations: Conversations,
) -> None:
    parent_id = await summed_up(conversations)
    start = await conversations.find_by_discord_id(31)
    assert start is not None
    thread_id = await conversations.open(OTHER_CHANNEL)
    assert await conversations.turns.link(thread_id, 31)
    later = await ask(conversations, 40)
    await finish(conversations, later.answer.id)
    messages = await conversations.recent(parent_id, 2)
    assert await conversations.summaries.add(parent_id, messages, messages[-1].id + 1, "Later.")
    assert await texts(conversations, parent_id) == ["In short.", "Later."]
    assert await texts(conversations, thread_id) == ["In short."]
    turn = await ask(conversations, 50, "In the thread", OTHER_CHANNEL)
    await finish(conversations, turn.answer.id)
    messages = await conversations.history_next(thread_id, limit=100)
    assert await conversations.summaries.add(thread_id, messages, turn.answer.id, "Of both.")
    assert await texts(conversations, thread_id) == ["In short.", "Of both."]
    await conversations.delete_question(10)
    assert await texts(conversations, thread_id) == []
    await conversations.reset(parent_id, by_user_id=1, at=NOW)
    assert await texts(conversations, thread_id) == []
