"""Regenerating: the old answer waits out of sight, and exactly one of the two is left."""

from __future__ import annotations

import asyncio

import pytest

from storage.conversations import Conversations, Message, MessageState
from storage.database import Database
from storage.errors import AnswerPendingError, NotFoundError, NotNewestAnswerError
from tests.storage.steps import OTHER_CHANNEL, ask, asked_and_answered, contents, finish, num_rows


async def regenerated(conversations: Conversations) -> tuple[Message, Message]:
    """Return the old answer, shown by two Discord messages, and the new one that is pending."""
    turn = await asked_and_answered(conversations, 1, answer="Old.")
    await conversations.attach_part(turn.answer.id, 3, 1)
    new = await conversations.begin_regeneration(turn.answer.id)
    old = await conversations.find_answer(turn.answer.id)
    assert old is not None
    return old, new


async def test_the_new_answer_takes_the_place_and_the_parts(
    conversations: Conversations, database: Database
) -> None:
    old, new = await regenerated(conversations)
    assert (new.state, new.reply_to, new.content) == (MessageState.PENDING, old.reply_to, "")
    assert new.id > old.id
    assert await conversations.parts(new.id) == [2, 3]
    assert await conversations.parts(old.id) == []
    # The old one is kept, yet nobody sees it.
    assert await num_rows(database, "messages") == 3
    assert [one.id for one in await conversations.recent(old.conversation_id, 10)] == [old.reply_to, new.id]
    assert await contents(conversations, new.id) == ["Why?"]
    standing = await finish(conversations, new.id, "New.")
    assert standing is not None
    assert (standing.id, standing.content) == (new.id, "New.")
    assert await conversations.find_answer(old.id) is None
    assert await conversations.parts(new.id) == [2, 3]
    following = await ask(conversations, 10, "And?")
    assert await contents(conversations, following.answer.id) == ["Why?", "New.", "And?"]


@pytest.mark.parametrize("content", ["New.", ""])
async def test_a_part_that_comes_late_belongs_to_the_answer_in_its_place(
    conversations: Conversations, content: str
) -> None:
    old, new = await regenerated(conversations)
    assert await conversations.attach_part(old.id, 4, 0)
    assert await conversations.parts(old.id) == []
    assert await conversations.parts(new.id) == [2, 3, 4]
    standing = await finish(conversations, new.id, content, MessageState.STOPPED)
    assert standing is not None
    assert standing.id == (new.id if content else old.id)
    assert await conversations.parts(standing.id) == [2, 3, 4]


async def test_an_answer_that_is_being_replaced_is_not_shown_to_the_model(
    conversations: Conversations,
) -> None:
    await regenerated(conversations)
    following = await ask(conversations, 10, "And?")
    assert await contents(conversations, following.answer.id) == ["Why?", "And?"]


@pytest.mark.parametrize("state", [MessageState.FAILED, MessageState.STOPPED, MessageState.INTERRUPTED])
async def test_a_regeneration_with_nothing_to_show_gives_way_to_the_old_answer(
    conversations: Conversations, state: MessageState
) -> None:
    old, new = await regenerated(conversations)
    await conversations.attach_part(new.id, 4, 2)
    assert await finish(conversations, new.id, "  \n", state) == old
    assert await conversations.find_answer(new.id) is None
    assert await conversations.parts(old.id) == [2, 3, 4]
    assert await finish(conversations, new.id, "Late.") is None
    following = await ask(conversations, 10, "And?")
    assert await contents(conversations, following.answer.id) == ["Why?", "Old.", "And?"]


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ("Half of it", MessageState.FAILED),
        ("Half of it", MessageState.STOPPED),
        ("", MessageState.COMPLETE),
    ],
)
async def test_a_regeneration_that_shows_something_or_completed_stands(
    conversations: Conversations, content: str, state: MessageState
) -> None:
    old, new = await regenerated(conversations)
    standing = await finish(conversations, new.id, content, state)
    assert standing is not None
    assert standing.id == new.id
    assert await conversations.find_answer(old.id) is None


async def test_it_can_be_regenerated_again_and_again(
    conversations: Conversations, database: Database
) -> None:
    turn = await asked_and_answered(conversations, 1)
    answer_id = turn.answer.id
    for number in range(5):
        new = await conversations.begin_regeneration(answer_id)
        await finish(conversations, new.id, f"Version {number}")
        answer_id = new.id
    # A restored answer can be as well.
    failed = await conversations.begin_regeneration(answer_id)
    await finish(conversations, failed.id, "", MessageState.FAILED)
    await conversations.begin_regeneration(answer_id)
    assert await num_rows(database, "messages") == 3


async def test_a_pending_answer_is_refused(conversations: Conversations) -> None:
    turn = await ask(conversations, 1)
    with pytest.raises(AnswerPendingError):
        await conversations.begin_regeneration(turn.answer.id)


async def test_of_many_presses_one_counts(conversations: Conversations) -> None:
    turn = await asked_and_answered(conversations, 1)
    presses = (conversations.begin_regeneration(turn.answer.id) for _ in range(10))
    results = await asyncio.gather(*presses, return_exceptions=True)
    assert sum(isinstance(result, AnswerPendingError) for result in results) == 9
    (new,) = [result for result in results if isinstance(result, Message)]
    await finish(conversations, new.id)
    with pytest.raises(NotFoundError, match="no longer exists"):
        await conversations.begin_regeneration(turn.answer.id)


async def test_only_the_newest_answer_of_its_conversation_is_taken(conversations: Conversations) -> None:
    first = await asked_and_answered(conversations, 1)
    await asked_and_answered(conversations, 11, ref=OTHER_CHANNEL)
    second = await asked_and_answered(conversations, 21)
    with pytest.raises(NotNewestAnswerError):
        await conversations.begin_regeneration(first.answer.id)
    await conversations.delete_question(21)
    assert await conversations.find_answer(second.answer.id) is None
    assert (await conversations.begin_regeneration(first.answer.id)).reply_to == first.question.id


@pytest.mark.parametrize("unknown", [0, 999])
async def test_what_is_not_an_answer_is_refused(conversations: Conversations, unknown: int) -> None:
    turn = await asked_and_answered(conversations, 1)
    with pytest.raises(NotFoundError):
        await conversations.begin_regeneration(turn.question.id if unknown == 0 else unknown)
