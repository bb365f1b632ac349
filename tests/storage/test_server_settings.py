"""The settings of servers: kept apart, overwritten, cleared, and of every kind of value."""

from __future__ import annotations

import pytest

from storage.database import Database
from storage.settings import ServerSettingsStore, Setting
from tests.storage.conftest import NOW


@pytest.fixture
def store(database: Database) -> ServerSettingsStore:
    return ServerSettingsStore(database)


@pytest.mark.parametrize("value", ["text", 3, 0.5, True, [1, 2], ["a", "b"], []])
async def test_a_value_comes_back_as_it_was(store: ServerSettingsStore, value: Setting) -> None:
    await store.set(1, "key", value, by_user_id=7, at=NOW)
    assert await store.all(1) == {"key": value}


async def test_servers_do_not_see_each_other(store: ServerSettingsStore) -> None:
    await store.set(1, "key", "one", by_user_id=7, at=NOW)
    await store.set(2, "key", "two", by_user_id=7, at=NOW)
    assert await store.clear(1, None) == 1
    assert await store.all(1) == {}
    assert await store.all(2) == {"key": "two"}


async def test_setting_again_replaces(store: ServerSettingsStore) -> None:
    for value in (1, 2):
        await store.set(1, "key", value, by_user_id=7, at=NOW)
    await store.set(1, "other", 3, by_user_id=7, at=NOW)
    assert await store.all(1) == {"key": 2, "other": 3}
    assert await store.clear(1, "key") == 1
    assert await store.all(1) == {"other": 3}


async def test_a_number_that_is_not_finite_is_refused(store: ServerSettingsStore) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        await store.set(1, "key", float("nan"), by_user_id=7, at=NOW)
    assert await store.all(1) == {}
