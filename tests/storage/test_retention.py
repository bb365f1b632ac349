"""What goes by itself: old messages, and everything of places that are gone."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from storage import retention as retention_module
from storage.conversations import ConversationKind, ConversationRef, Conversations
from storage.database import Database
from storage.moderation import Blocks
from storage.retention import Place, Retention
from storage.settings import ServerSettingsStore, SettingsStore
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, OTHER_CHANNEL, ask, asked_and_answered

ELSEWHERE = ConversationRef(300, ConversationKind.CHANNEL, 8)


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retention(database: Database, clock: Clock) -> Retention:
    return Retention(database, now=clock)


async def contents(conversations: Conversations, ref: ConversationRef) -> list[str]:
    return [m.content for m in await conversations.recent(await conversations.open(ref), 100)]


async def delete_all_gone(retention: Retention, before: datetime) -> None:
    while await retention.delete_gone(gone_before=before):
        pass


async def test_old_questions_go_with_their_answers_and_newer_ones_stay(
    conversations: Conversations, retention: Retention
) -> None:
    await asked_and_answered(conversations, 1)
    assert await retention.delete_older(NOW) == 0
    assert await retention.delete_older(NOW + timedelta(seconds=1)) == 1
    assert await contents(conversations, CHANNEL) == []


async def test_an_answer_being_written_keeps_its_question(
    conversations: Conversations, retention: Retention
) -> None:
    await ask(conversations, 1)
    assert await retention.delete_older(NOW + timedelta(days=1)) == 0
    assert await contents(conversations, CHANNEL) == ["Why?", ""]


async def test_one_call_deletes_a_batch(
    conversations: Conversations, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "BATCH_SIZE", 2)
    for number in range(3):
        await asked_and_answered(conversations, 10 * number + 1)
    later = NOW + timedelta(days=1)
    assert [await retention.delete_older(later) for _ in range(3)] == [2, 1, 0]


async def test_a_server_goes_after_its_time_with_all_that_belongs_to_it(
    database: Database, conversations: Conversations, retention: Retention
) -> None:
    await asked_and_answered(conversations, 1)
    await asked_and_answered(conversations, 11, ref=OTHER_CHANNEL)
    await asked_and_answered(conversations, 21, ref=ELSEWHERE)
    await SettingsStore(database).set(await conversations.open(CHANNEL), "top_k", 3, by_user_id=1, at=NOW)
    await ServerSettingsStore(database).set(7, "label", True, by_user_id=1, at=NOW)
    await Blocks(database).add(7, 1, by_user_id=2, at=NOW)
    await retention.mark_gone(Place.SERVER, 7)
    await delete_all_gone(retention, NOW - timedelta(seconds=1))
    assert await contents(conversations, CHANNEL) == ["Why?", "Because."]
    await delete_all_gone(retention, NOW)
    rows = await database.fetch_all("SELECT guild_id FROM conversations")
    assert [row["guild_id"] for row in rows] == [8]
    assert await database.fetch_all("SELECT 1 FROM settings") == []
    assert await ServerSettingsStore(database).all(7) == {}
    assert not await Blocks(database).is_blocked(7, 1)
    assert await contents(conversations, ELSEWHERE) == ["Why?", "Because."]


async def test_a_server_we_are_back_in_keeps_everything(
    conversations: Conversations, retention: Retention
) -> None:
    await asked_and_answered(conversations, 1)
    await retention.mark_gone(Place.SERVER, 7)
    await retention.mark_back(7)
    await delete_all_gone(retention, NOW)
    assert await contents(conversations, CHANNEL) == ["Why?", "Because."]


async def test_the_first_time_it_was_gone_counts(
    conversations: Conversations, retention: Retention, clock: Clock
) -> None:
    await asked_and_answered(conversations, 1)
    await retention.mark_gone(Place.CHANNEL, 100)
    clock.now += timedelta(days=1)
    await retention.mark_gone(Place.CHANNEL, 100)
    await delete_all_gone(retention, NOW)
    assert await contents(conversations, CHANNEL) == []


async def test_a_deleted_channel_takes_nothing_of_others(
    conversations: Conversations, retention: Retention
) -> None:
    await asked_and_answered(conversations, 1)
    await asked_and_answered(conversations, 11, ref=OTHER_CHANNEL)
    await retention.mark_gone(Place.CHANNEL, 100)
    await delete_all_gone(retention, NOW)
    assert await contents(conversations, CHANNEL) == []
    assert await contents(conversations, OTHER_CHANNEL) == ["Why?", "Because."]


async def test_what_happened_while_we_were_away_is_found(
    conversations: Conversations, retention: Retention
) -> None:
    await asked_and_answered(conversations, 1)
    await asked_and_answered(conversations, 21, ref=ELSEWHERE)
    await retention.mark_gone(Place.SERVER, 7)
    await retention.compare_servers([7])
    await delete_all_gone(retention, NOW)
    assert await contents(conversations, CHANNEL) == ["Why?", "Because."]
    assert await contents(conversations, ELSEWHERE) == []


async def test_direct_messages_belong_to_no_server(
    conversations: Conversations, retention: Retention
) -> None:
    direct = ConversationRef(5, ConversationKind.DIRECT, None)
    await asked_and_answered(conversations, 1, ref=direct)
    await retention.compare_servers([])
    await delete_all_gone(retention, NOW)
    assert await contents(conversations, direct) == ["Why?", "Because."]


DIRECT = ConversationRef(500, ConversationKind.DIRECT, None)
LATER = NOW + timedelta(hours=1)


async def channels(database: Database) -> list[int]:
    return [
        row["channel_id"]
        for row in await database.fetch_all("SELECT channel_id FROM conversations ORDER BY id")
    ]


async def test_private_questions_that_were_left_behind_go(
    database: Database, conversations: Conversations, retention: Retention
) -> None:
    """Those that a crash cut off, in a server and outside, and the empty ones that earlier versions left."""
    await ask(conversations, 900, ref=ConversationRef(900, ConversationKind.DIRECT, 7))
    await ask(conversations, 901, ref=ConversationRef(901, ConversationKind.DIRECT, None))
    await conversations.open(ConversationRef(902, ConversationKind.DIRECT, 7))
    for ref in (DIRECT, CHANNEL, ConversationRef(77, ConversationKind.THREAD, 7)):
        await asked_and_answered(conversations, ref.channel_id + 5, ref=ref)
    await conversations.open(ConversationRef(501, ConversationKind.DIRECT, None))
    assert await retention.delete_private(begun_before=NOW) == 0
    assert await retention.delete_private(begun_before=LATER) == 3
    assert await channels(database) == [500, CHANNEL.channel_id, 77, 501]
    assert len(await database.fetch_all("SELECT id FROM messages")) == 6


async def test_the_start_clears_up_what_holds_nothing_and_keeps_what_does(
    database: Database, conversations: Conversations, retention: Retention
) -> None:
    await ask(conversations, 900, ref=ConversationRef(900, ConversationKind.DIRECT, 7))
    for channel_id in (501, 502, 503):
        await conversations.open(ConversationRef(channel_id, ConversationKind.DIRECT, None))
    await conversations.open(OTHER_CHANNEL)
    await conversations.open(ConversationRef(-1, ConversationKind.DIRECT, None))
    await SettingsStore(database).set(
        await conversations.open(ConversationRef(502, ConversationKind.DIRECT, None)),
        "top_k",
        3,
        by_user_id=1,
        at=NOW,
    )
    await asked_and_answered(conversations, 1, ref=DIRECT)
    await conversations.reset(await conversations.open(DIRECT), by_user_id=1, at=NOW)
    await retention.clear_up()
    shelf = min(await channels(database))
    assert await channels(database) == [502, OTHER_CHANNEL.channel_id, -1, 500, shelf]
    assert len(await database.fetch_all("SELECT id FROM messages")) == 2
