"""Questions, answers and their Discord messages, one at a time and many at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest

from storage.conversations import (
    ConversationKind,
    ConversationRef,
    Conversations,
    MessageState,
    Role,
)
from storage.database import Database
from storage.errors import DuplicateMessageError, NotFoundError
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, OTHER_CHANNEL, ask, asked_and_answered, finish, num_rows


async def test_a_place_has_one_conversation_even_if_opened_at_once(
    conversations: Conversations, database: Database
) -> None:
    ids = await asyncio.gather(*(conversations.open(CHANNEL) for _ in range(30)))
    assert len(set(ids)) == 1
    assert await conversations.open(OTHER_CHANNEL) != ids[0]
    assert await num_rows(database, "conversations") == 2


async def test_a_place_that_changed_its_kind_keeps_its_conversation(conversations: Conversations) -> None:
    before = await conversations.open(ConversationRef(5, ConversationKind.CHANNEL, 7))
    assert await conversations.open(ConversationRef(5, ConversationKind.THREAD, 7)) == before


async def test_a_turn_is_a_stored_question_and_an_empty_answer(conversations: Conversations) -> None:
    turn = await ask(conversations, 2**62, "Why is the sky blue? 🌈\x00")
    question, answer = turn.question, turn.answer
    assert (question.role, question.state, question.reply_to) == (Role.USER, MessageState.COMPLETE, None)
    assert (question.author_id, question.author_name) == (42, "Ada")
    assert question.content == "Why is the sky blue? 🌈\N{REPLACEMENT CHARACTER}"
    assert question.created_at == NOW
    assert (answer.role, answer.state, answer.content) == (Role.ASSISTANT, MessageState.PENDING, "")
    assert answer.reply_to == question.id
    assert answer.conversation_id == question.conversation_id
    assert await conversations.find_by_discord_id(2**62) == question
    assert await conversations.find_answer(answer.id) == answer
    assert await conversations.find_answer(question.id) is None
    assert await conversations.find_by_discord_id(1) is None


async def test_times_are_kept_in_utc_to_the_millisecond(conversations: Conversations) -> None:
    local = datetime(1969, 7, 20, 22, 17, 40, 123456, tzinfo=timezone(timedelta(hours=2)))
    conversation_id = await conversations.open(CHANNEL)
    turn = await conversations.begin_turn(
        conversation_id, discord_id=1, author_id=2, author_name="A", content="x", created_at=local
    )
    assert turn.question.created_at == datetime(1969, 7, 20, 20, 17, 40, 123000, tzinfo=UTC)
    assert turn.question.created_at.tzinfo is UTC
    with pytest.raises(ValueError, match="time zone"):
        await conversations.begin_turn(
            conversation_id,
            discord_id=2,
            author_id=2,
            author_name="A",
            content="x",
            created_at=datetime(2026, 1, 1),  # noqa: DTZ001
        )


async def test_text_that_utf8_cannot_hold_is_replaced(conversations: Conversations) -> None:
    turn = await ask(conversations, 1, "half \ud83d an emoji")
    assert turn.question.content == "half ? an emoji"
    ended = await finish(conversations, turn.answer.id, "\udc00")
    assert ended is not None
    assert ended.content == "?"


async def test_a_discord_message_is_taken_once(conversations: Conversations, database: Database) -> None:
    await ask(conversations, 1)
    with pytest.raises(DuplicateMessageError) as raised:
        await ask(conversations, 1, "Again", OTHER_CHANNEL)
    assert raised.value.discord_id == 1
    results = await asyncio.gather(*(ask(conversations, 2) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(result, DuplicateMessageError) for result in results) == 19
    assert await num_rows(database, "messages") == 4


async def test_a_turn_in_an_unknown_conversation_is_refused(
    conversations: Conversations, database: Database
) -> None:
    with pytest.raises(NotFoundError):
        await conversations.begin_turn(
            999, discord_id=1, author_id=2, author_name="A", content="x", created_at=NOW
        )
    assert await num_rows(database, "messages") == 0


async def test_turns_begun_at_once_stay_whole_and_in_their_channels(conversations: Conversations) -> None:
    refs = [ConversationRef(channel, ConversationKind.CHANNEL, 7) for channel in range(1, 9)]
    turns = await asyncio.gather(
        *(
            ask(conversations, 1000 * ref.channel_id + number, f"{ref.channel_id}", ref)
            for number in range(25)
            for ref in refs
        )
    )
    assert all(turn.answer.id == turn.question.id + 1 for turn in turns)
    for ref in refs:
        messages = await conversations.recent(await conversations.open(ref), 1000)
        assert len(messages) == 50
        assert {one.content for one in messages if one.role is Role.USER} == {f"{ref.channel_id}"}


@pytest.mark.parametrize(
    "state",
    [MessageState.COMPLETE, MessageState.STOPPED, MessageState.FAILED, MessageState.INTERRUPTED],
)
async def test_an_answer_ends_exactly_once(conversations: Conversations, state: MessageState) -> None:
    turn = await ask(conversations, 1)
    ended = await finish(conversations, turn.answer.id, "Because.", state)
    assert ended is not None
    assert (ended.state, ended.content, ended.num_tokens, ended.finish_reason) == (
        state,
        "Because.",
        3,
        "stop",
    )
    assert await finish(conversations, turn.answer.id, "Other.") is None
    assert await conversations.find_answer(turn.answer.id) == ended


async def test_of_many_endings_one_counts(conversations: Conversations) -> None:
    turn = await ask(conversations, 1)
    ended = await asyncio.gather(*(finish(conversations, turn.answer.id, f"{n}") for n in range(20)))
    (winner,) = [one for one in ended if one is not None]
    assert await conversations.find_answer(turn.answer.id) == winner


async def test_neither_a_question_nor_nothing_can_be_ended(conversations: Conversations) -> None:
    turn = await ask(conversations, 1)
    assert await finish(conversations, turn.question.id) is None
    assert await finish(conversations, 999) is None
    with pytest.raises(ValueError, match="pending"):
        await finish(conversations, turn.answer.id, state=MessageState.PENDING)


async def test_a_checkpoint_keeps_the_answer_running(conversations: Conversations) -> None:
    turn = await ask(conversations, 1)
    assert await conversations.checkpoint(turn.answer.id, "Beca")
    answer = await conversations.find_answer(turn.answer.id)
    assert answer is not None
    assert (answer.content, answer.state) == ("Beca", MessageState.PENDING)
    await finish(conversations, turn.answer.id)
    assert not await conversations.checkpoint(turn.answer.id, "Beca")
    assert not await conversations.checkpoint(999, "Beca")
    answer = await conversations.find_answer(turn.answer.id)
    assert answer is not None
    assert answer.content == "Because."


async def test_the_parts_of_an_answer_are_in_order(conversations: Conversations) -> None:
    turn = await ask(conversations, 1)
    for position, discord_id in ((1, 30), (0, 20), (2, 10)):
        assert await conversations.attach_part(turn.answer.id, discord_id, position)
    assert await conversations.parts(turn.answer.id) == [20, 30, 10]
    assert await conversations.parts(turn.question.id) == [1]
    found = await conversations.find_by_discord_id(30)
    assert found is not None
    assert found.id == turn.answer.id


async def test_a_part_may_be_attached_again_and_takes_no_others_place(conversations: Conversations) -> None:
    """Positions may have gaps: what was at 0 went before what is at 1 came."""
    turn = await ask(conversations, 1)
    for discord_id in (20, 20, 21):
        assert await conversations.attach_part(turn.answer.id, discord_id, 1)
    assert await conversations.parts(turn.answer.id) == [20, 21]


async def test_a_part_that_is_found_later_comes_where_it_stands(conversations: Conversations) -> None:
    turn = await ask(conversations, 1)
    for position, discord_id in enumerate((20, 40, 50)):
        await conversations.attach_part(turn.answer.id, discord_id, position)
    for position, discord_id in enumerate((20, 30, 40, 50)):
        await conversations.attach_part(turn.answer.id, discord_id, position)
    assert await conversations.parts(turn.answer.id) == [20, 30, 40, 50]


async def test_a_part_of_another_message_is_not_taken_over(conversations: Conversations) -> None:
    turn = await ask(conversations, 1)
    with pytest.raises(DuplicateMessageError):
        await conversations.attach_part(turn.answer.id, 1, 0)
    assert await conversations.parts(turn.question.id) == [1]


async def test_a_part_of_an_answer_that_is_gone_is_not_recorded(conversations: Conversations) -> None:
    assert not await conversations.attach_part(999, 20, 0)
    assert await conversations.find_by_discord_id(20) is None


@pytest.mark.parametrize(
    ("gone", "left"), [(10, [11, 12, 13]), (11, [10, 12, 13]), (13, [10, 11, 12]), (99, [10, 11, 12, 13])]
)
async def test_the_parts_after_a_detached_one_move_up(
    conversations: Conversations, gone: int, left: list[int]
) -> None:
    turn = await ask(conversations, 1)
    for position in range(4):
        await conversations.attach_part(turn.answer.id, 10 + position, position)
    await conversations.detach_part(gone)
    assert await conversations.parts(turn.answer.id) == left
    await conversations.attach_part(turn.answer.id, 50, len(left))
    assert await conversations.parts(turn.answer.id) == [*left, 50]


async def test_a_question_is_not_detached(conversations: Conversations) -> None:
    turn = await asked_and_answered(conversations, 1)
    await conversations.detach_part(1)
    assert await conversations.parts(turn.question.id) == [1]


async def test_a_copy_takes_the_place_of_a_question_once(conversations: Conversations) -> None:
    turn = await ask(conversations, 20, "luna: Why?")
    assert await conversations.turns.move_question(20, 21, "Luna", "Why?")
    moved = await conversations.find_by_discord_id(21)
    assert moved is not None
    assert (moved.id, moved.author_id, moved.author_name, moved.content) == (
        turn.question.id,
        42,
        "Luna",
        "Why?",
    )
    assert await conversations.find_by_discord_id(20) is None
    assert await conversations.delete_question(20) is None, "the original is nothing to us any more"
    assert not await conversations.turns.move_question(20, 22, "Luna", "again")


async def test_a_copy_takes_the_place_of_nothing_else(conversations: Conversations) -> None:
    await asked_and_answered(conversations, 20)
    await ask(conversations, 30, "Something")
    assert not await conversations.turns.move_question(20, 30, "Luna", "a message that is known")
    assert not await conversations.turns.move_question(21, 31, "Luna", "an answer")
    assert not await conversations.turns.move_question(99, 98, "Luna", "nothing")
    kept = [await conversations.find_by_discord_id(one) for one in (20, 21, 30)]
    assert None not in kept
    assert "Luna" not in str(kept)
