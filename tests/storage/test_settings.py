"""Settings of a conversation: what goes in comes out, and nobody else's changes."""

from __future__ import annotations

import asyncio

import pytest

from storage.conversations import Conversations
from storage.database import Database
from storage.errors import NotFoundError
from storage.settings import Setting, SettingsStore
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, OTHER_CHANNEL, num_rows


@pytest.fixture
def settings(database: Database) -> SettingsStore:
    return SettingsStore(database)


@pytest.mark.parametrize("value", ["", "You are a pirate. \ud83d🏴‍☠️\n", 0, -5, 2**62, 0.1, 1e-300])
async def test_a_value_comes_back_as_it_was(
    conversations: Conversations, settings: SettingsStore, value: Setting
) -> None:
    conversation_id = await conversations.open(CHANNEL)
    await settings.set(conversation_id, "key", value, by_user_id=9, at=NOW)
    expected = value.replace("\ud83d", "?") if isinstance(value, str) else value
    stored = (await settings.all(conversation_id))["key"]
    assert stored == expected
    assert type(stored) is type(value)


async def test_a_value_is_replaced_and_who_did_it_recorded(
    conversations: Conversations, settings: SettingsStore, database: Database
) -> None:
    conversation_id = await conversations.open(CHANNEL)
    for user_id, value in ((1, 0.5), (2, 0.9)):
        await settings.set(conversation_id, "top_p", value, by_user_id=user_id, at=NOW)
    assert await settings.all(conversation_id) == {"top_p": 0.9}
    (row,) = await database.fetch_all("SELECT by_user_id, changed_at FROM settings")
    assert tuple(row) == (2, int(NOW.timestamp() * 1000))


async def test_conversations_have_their_own(conversations: Conversations, settings: SettingsStore) -> None:
    first, second = await conversations.open(CHANNEL), await conversations.open(OTHER_CHANNEL)
    await settings.set(first, "top_k", 1, by_user_id=9, at=NOW)
    await settings.set(second, "top_k", 2, by_user_id=9, at=NOW)
    assert await settings.clear(first, None) == 1
    assert (await settings.all(first), await settings.all(second)) == ({}, {"top_k": 2})


async def test_one_or_all_are_cleared(conversations: Conversations, settings: SettingsStore) -> None:
    conversation_id = await conversations.open(CHANNEL)
    for key in ("a", "b", "c"):
        await settings.set(conversation_id, key, 1, by_user_id=9, at=NOW)
    assert await settings.clear(conversation_id, "b") == 1
    assert await settings.clear(conversation_id, "b") == 0
    assert await settings.all(conversation_id) == {"a": 1, "c": 1}
    assert await settings.clear(conversation_id, None) == 2


async def test_all_but_one_are_cleared(conversations: Conversations, settings: SettingsStore) -> None:
    conversation_id = await conversations.open(CHANNEL)
    await settings.set_all(conversation_id, {"a": 1, "b": 2, "c": 3}, by_user_id=9, at=NOW)
    assert await settings.clear(conversation_id, None, keep="b") == 2
    assert await settings.all(conversation_id) == {"b": 2}


async def test_an_unknown_conversation_and_a_number_without_value_are_refused(
    conversations: Conversations, settings: SettingsStore, database: Database
) -> None:
    with pytest.raises(NotFoundError):
        await settings.set(999, "top_k", 1, by_user_id=9, at=NOW)
    with pytest.raises(ValueError, match="JSON"):
        await settings.set(await conversations.open(CHANNEL), "top_p", float("nan"), by_user_id=9, at=NOW)
    assert await num_rows(database, "settings") == 0


async def test_settings_set_at_once_are_all_kept(
    conversations: Conversations, settings: SettingsStore
) -> None:
    conversation_id = await conversations.open(CHANNEL)
    await asyncio.gather(
        *(settings.set(conversation_id, f"key{n}", n, by_user_id=9, at=NOW) for n in range(30))
    )
    assert await settings.all(conversation_id) == {f"key{n}": n for n in range(30)}
