"""Which servers are whose, and that whatever sweeps, compares or repairs keeps to its own."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.conversations import ConversationKind, ConversationRef, Conversations, MessageState
from storage.database import Database
from storage.retention import Place, Retention
from storage.shards import Shards, shard_of
from tests.storage.conftest import NOW
from tests.storage.steps import ask, finish

OURS, THEIRS = Shards(0, 1, 4), Shards(2, 3, 4)
OUR_SERVER, THEIR_SERVER = 9 << 22 | 5, 10 << 22 | 5
OUR_CHANNEL = ConversationRef(100, ConversationKind.CHANNEL, OUR_SERVER)
THEIR_CHANNEL = ConversationRef(200, ConversationKind.CHANNEL, THEIR_SERVER)
DIRECT = ConversationRef(300, ConversationKind.DIRECT, None)
LATER = timedelta(days=60)


@given(st.integers(1, 64), st.integers(0, 2**63 - 1), st.data())
def test_every_server_belongs_to_one_range_of_shards(count: int, guild_id: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, count - 1))
    ranges = [Shards(0, cut, count), *([Shards(cut + 1, count - 1, count)] if cut + 1 < count else [])]
    assert sum(one.has(guild_id) for one in ranges) == 1
    assert ranges[0].has(None)
    assert sum(map(len, ranges)) == count
    assert (guild_id >> 22) % count == shard_of(guild_id, count)


@pytest.mark.parametrize(("first", "last", "count"), [(-1, 0, 1), (1, 0, 2), (0, 2, 2), (0, 0, 0)])
def test_there_are_no_other_shards(first: int, last: int, count: int) -> None:
    with pytest.raises(ValueError, match="no such shards"):
        Shards(first, last, count)


async def test_the_condition_is_the_arithmetic(database: Database) -> None:
    ids = (*(number << 22 | 7 for number in range(9)), 2**62 + 1)
    for shards in (OURS, THEIRS, Shards(1, 1, 3), Shards(0, 2, 3)):
        for guild_id in (None, *ids):
            sql = f"SELECT {shards.condition('?1')} AS is_ours"
            assert shards.condition("x") == "1 = 1" or "?1" in sql
            params = (guild_id,) if "?1" in sql else ()
            (row,) = await database.fetch_all(sql, params)
            assert bool(row["is_ours"]) is shards.has(guild_id)


async def test_only_ones_own_answers_are_taken_for_interrupted(
    database: Database, conversations: Conversations
) -> None:
    running = {
        ref: await ask(conversations, number, "?", ref)
        for number, ref in enumerate((OUR_CHANNEL, THEIR_CHANNEL, DIRECT), 1)
    }
    ours, theirs = (Conversations(database, now=lambda: NOW, shards=one) for one in (OURS, THEIRS))
    found = await ours.interrupt_pending()
    assert [one.channel_id for one in found] == [OUR_CHANNEL.channel_id, DIRECT.channel_id]
    assert await finish(conversations, running[THEIR_CHANNEL].answer.id) is not None
    assert [one.channel_id for one in await ours.unshown(within=LATER, limit=9)] == [100, 300]
    assert [one.channel_id for one in await theirs.unshown(within=LATER, limit=9)] == [200]
    assert [one.channel_id for one in await theirs.unshown(within=LATER, limit=1)] == [200]
    assert await theirs.interrupt_pending() == []


async def test_what_is_asked_of_late_and_what_resets_put_aside_is_ones_own(
    database: Database, conversations: Conversations
) -> None:
    turns = [await ask(conversations, n, "?", ref) for n, ref in enumerate((OUR_CHANNEL, THEIR_CHANNEL), 1)]
    ids = [turn.question.conversation_id for turn in turns]
    ours = Conversations(database, now=lambda: NOW, shards=OURS)
    assert [one.conversation_id for one in await ours.asked_since(NOW - LATER)] == ids[:1]
    for conversation_id in ids:
        await conversations.reset(conversation_id, by_user_id=1, at=NOW)
    assert await ours.purge_resets(before=NOW + LATER) == 1
    assert await Conversations(database, shards=THEIRS).purge_resets(before=NOW + LATER) == 1


async def test_servers_of_others_are_not_taken_for_gone(
    database: Database, conversations: Conversations
) -> None:
    for number, ref in enumerate((OUR_CHANNEL, THEIR_CHANNEL), 1):
        await ask(conversations, number, "?", ref)
    await Retention(database, now=lambda: NOW, shards=OURS).compare_servers([])
    gone = await database.fetch_all("SELECT discord_id FROM departures")
    assert [row["discord_id"] for row in gone] == [OUR_SERVER]


async def test_what_is_old_private_or_gone_is_deleted_by_those_whose_it_is(
    database: Database, conversations: Conversations
) -> None:
    private = [
        ConversationRef(number, ConversationKind.DIRECT, guild_id)
        for number, guild_id in ((400, OUR_SERVER), (500, THEIR_SERVER))
    ]
    empty = [ConversationRef(n, ConversationKind.DIRECT, g) for n, g in ((600, None), (700, THEIR_SERVER))]
    for number, ref in enumerate((OUR_CHANNEL, THEIR_CHANNEL, *private), 1):
        turn = await ask(conversations, number, "?", ref)
        await finish(conversations, turn.answer.id, state=MessageState.COMPLETE)
    for ref in empty:
        await conversations.open(ref)
    ours, theirs = (Retention(database, now=lambda: NOW, shards=one) for one in (OURS, THEIRS))

    await theirs.clear_up()
    assert [await conversations.find(ref) is None for ref in (*private, *empty)] == [False, True, False, True]
    await ours.clear_up()
    assert [await conversations.find(ref) is None for ref in (*private, *empty)] == [True] * 4

    assert await ours.delete_older(NOW + LATER) == 1
    assert await conversations.recent(await conversations.open(OUR_CHANNEL), 9) == []
    assert len(await conversations.recent(await conversations.open(THEIR_CHANNEL), 9)) == 2

    for place, discord_id in (
        (Place.SERVER, THEIR_SERVER),
        (Place.CHANNEL, THEIR_CHANNEL.channel_id),
        (Place.CHANNEL, 999),
    ):
        await ours.mark_gone(place, discord_id)
    while await ours.delete_gone(gone_before=NOW + LATER):
        pass
    assert len(await conversations.recent(await conversations.open(THEIR_CHANNEL), 9)) == 2
    assert len(await database.fetch_all("SELECT * FROM departures")) == 2
    while await theirs.delete_gone(gone_before=NOW + LATER):
        pass
    assert await conversations.find(THEIR_CHANNEL) is None
    assert await database.fetch_all("SELECT * FROM departures") == []
