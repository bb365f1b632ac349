"""The settings of servers: what they may hold, and that changes hold at once and on their server only."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.errors import NotHereError
from bot.language.phrases import LANGUAGES, catalog
from bot.origin import Origin
from bot.servers.moderation import check_place
from bot.servers.server_config import AgeRestricted, ServerConfig, SettingError, read_config
from bot.servers.servers import Notice, NoticeKind, Notices, Servers
from storage.database import Database
from storage.settings import ServerSettingsStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ServerSettingsStore]:
    async with await Database.open(tmp_path / "servers.sqlite3") as database:
        yield ServerSettingsStore(database)


VALUES: dict[str, object] = {
    "allowed_channels": [1, 2],
    "allowed_roles": [3],
    "log_channel": 4,
    "age_restricted": "never",
    "user_per_minute": 5,
    "server_per_minute": 60,
    "question_words": ["a", "b"],
    "question_patterns": ["x+y"],
    "answer_words": ["c"],
    "answer_patterns": ["z{2}"],
    "removes_invites": False,
    "labels_answers": True,
    "lists_everywhere": False,
    "refuses_unchecked": False,
}


async def test_every_setting_comes_back_after_a_restart(store: ServerSettingsStore) -> None:
    changed = await Servers(store, Notices()).change(1, VALUES, by_user_id=9)
    assert await Servers(store, Notices()).config(1) == changed
    assert all(getattr(changed, name) != getattr(ServerConfig(), name) for name in VALUES)
    defaults = {name: getattr(ServerConfig(), name) for name in VALUES}
    await Servers(store, Notices()).change(1, defaults, by_user_id=9)
    assert await store.all(1) == {}
    assert await Servers(store, Notices()).config(1) == ServerConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_channels", ["1"]), ("allowed_channels", list(range(26))), ("allowed_channels", [True]),
        ("log_channel", "5"), ("age_restricted", "sometimes"), ("user_per_minute", 0),
        ("user_per_minute", 1001), ("user_per_minute", "5"), ("user_per_minute", True),
        ("question_words", "word"), ("question_words", ["x" * 61]),
        ("question_words", [str(n) for n in range(201)]),
        ("answer_patterns", ["("]), ("answer_patterns", [str(n) for n in range(21)]),
        ("removes_invites", 1), ("removes_invites", "yes"),
    ],
)  # fmt: skip
async def test_a_bad_value_is_refused_and_changes_nothing(
    store: ServerSettingsStore, name: str, value: object
) -> None:
    servers = Servers(store, Notices())
    with pytest.raises(SettingError):
        await servers.change(1, {"labels_answers": True, name: value}, by_user_id=9)
    assert await servers.config(1) == ServerConfig()
    assert await store.all(1) == {}


def test_what_is_stored_and_not_allowed_any_more_is_left_out() -> None:
    config = read_config(
        {"user_per_minute": -1, "unknown": 1, "labels_answers": True, "answer_patterns": ["("]}
    )
    assert config == ServerConfig(labels_answers=True)


async def test_a_change_holds_at_once_and_is_told(store: ServerSettingsStore) -> None:
    told: list[Notice] = []

    def take_and_fail(notice: Notice) -> None:
        told.append(notice)
        raise ArithmeticError

    notices = Notices()
    notices.listen(take_and_fail)
    servers = Servers(store, notices)
    assert (await servers.config(1)).user_per_minute is None
    await servers.change(1, {"user_per_minute": 3}, by_user_id=9)
    assert (await servers.config(1)).user_per_minute == 3
    await servers.change(1, {"user_per_minute": 3, "labels_answers": False}, by_user_id=9)
    assert [(one.guild_id, one.kind, one.by_user_id) for one in told] == [
        (1, NoticeKind.CONFIG_CHANGED, 9)
    ], "what stays as it is was not changed"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_setting_has_a_name_for_people(language: str) -> None:
    names = {key.partition(".")[2] for key in catalog(language).templates if key.startswith("setting_names.")}
    assert names == {one.name for one in dataclasses.fields(ServerConfig)}


async def test_two_at_once_change_both(store: ServerSettingsStore) -> None:
    servers = Servers(store, Notices())
    await asyncio.gather(
        servers.change(1, {"user_per_minute": 3}, by_user_id=9),
        servers.change(1, {"labels_answers": True}, by_user_id=8),
        servers.config(1),
    )
    expected = ServerConfig(user_per_minute=3, labels_answers=True)
    assert await servers.config(1) == await Servers(store, Notices()).config(1) == expected


async def test_servers_have_their_own_and_direct_messages_the_defaults(store: ServerSettingsStore) -> None:
    servers = Servers(store, Notices(), max_kept=1)
    await servers.change(1, {"labels_answers": True}, by_user_id=9)
    assert await servers.config(2) == ServerConfig()
    assert await servers.config(None) == ServerConfig()
    assert (await servers.config(1)).labels_answers


HERE = Origin(user_id=1, channel_id=10, guild_id=5, place_ids=frozenset({10, 100}), role_ids=frozenset({7}))


@pytest.mark.parametrize(
    ("config", "may_ask"),
    [
        (ServerConfig(), True),
        (ServerConfig(allowed_channels=frozenset({10})), True),
        (ServerConfig(allowed_channels=frozenset({100})), True),
        (ServerConfig(allowed_channels=frozenset({11})), False),
        (ServerConfig(allowed_roles=frozenset({7, 8})), True),
        (ServerConfig(allowed_roles=frozenset({8})), False),
        (ServerConfig(age_restricted=AgeRestricted.NEVER), True),
        (ServerConfig(age_restricted=AgeRestricted.ONLY), False),
    ],
)
def test_where_and_whom(config: ServerConfig, may_ask: bool) -> None:
    if may_ask:
        check_place(HERE, config)
        return
    with pytest.raises(NotHereError):
        check_place(HERE, config)
