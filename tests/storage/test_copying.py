"""Copies from one kind of database to the other: whole, resumed, refused, and with ids that go on."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from storage import copying
from storage.__main__ import main
from storage.address import Location, PostgresAddress
from storage.conversations import Conversations, Quote
from storage.copying import LEGS, copy
from storage.database import Database, in_use
from storage.errors import InUseError, StorageError
from storage.moderation import Blocks, Reports
from storage.people import People
from storage.retention import Place, Retention
from storage.settings import ServerSettingsStore, SettingsStore
from storage.turns import NewQuestion
from tests.postgres_server import PostgresServer
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, OTHER_CHANNEL, ask, asked_and_answered, finish

SHARED_BY_PROCESSES = {"shard_leases", "counters", "news"}
"""What running bots tell each other goes with them."""


async def fill(location: Location, num_turns: int = 5) -> None:
    """Leave something in every table, with references in every direction."""
    async with await Database.open(location) as database:
        conversations = Conversations(database, now=lambda: NOW)
        for number in range(num_turns):
            await asked_and_answered(conversations, 10 * number + 10, f"q{number} 🌈", "Because.")
        turn = await ask(conversations, 1000)
        await conversations.turns.ask_on(turn.answer.id, _question(1001))
        await finish(conversations, turn.answer.id)
        await conversations.attach_part(turn.answer.id, 1002, 0)
        thread = await conversations.open(OTHER_CHANNEL)
        assert await conversations.turns.link(thread, 1002)
        await conversations.begin_regeneration(turn.answer.id)
        messages = await conversations.recent(turn.answer.conversation_id, 2)
        await conversations.summaries.add(thread, messages[:1], messages[0].id, "In short.")
        put_aside = await asked_and_answered(conversations, 2000, ref=_THIRD)
        await conversations.reset(put_aside.answer.conversation_id, by_user_id=1, at=NOW)
        await SettingsStore(database).set(thread, "top_k", 3, by_user_id=1, at=NOW)
        await ServerSettingsStore(database).set(7, "label", True, by_user_id=1, at=NOW)
        await Blocks(database).add(7, 1, by_user_id=2, at=NOW)
        await Reports(database).add(1, by_user_id=2, at=NOW)
        await People(database).opt_out(99)
        await Retention(database).mark_gone(Place.CHANNEL, 5)
        last = await ask(conversations, 3000)
        await conversations.delete_question(3000)
        assert last.answer.id > 0


async def everything(location: Location) -> dict[str, list[list[object]]]:
    async with await Database.open(location) as database:
        return {
            leg.table: [
                list(row)
                for row in await database.fetch_all(f"SELECT * FROM {leg.table} ORDER BY 1, 2")  # noqa: S608
            ]
            for leg in LEGS
        }


def is_there(path: Path) -> bool:
    return path.exists()


async def newest_id(location: Location) -> int:
    async with await Database.open(location) as database:
        return (await ask(Conversations(database), 9999)).answer.id


@pytest.fixture
def address(postgres: PostgresServer) -> PostgresAddress:
    return postgres.migrated()


async def test_all_goes_there_and_back_and_ids_go_on(path: Path, address: PostgresAddress) -> None:
    await fill(path)
    before = await everything(path)
    assert all(before.values())
    copied = await copy(path, address, lambda _: None)
    assert copied.num_rows == {table: len(rows) for table, rows in before.items()}
    assert await everything(address) == before
    back = path.with_name("back.sqlite3")
    await copy(address, back, lambda _: None)
    assert await everything(back) == before
    # The newest message was deleted: its id, and that of its answer, are of the past on all sides.
    assert len({await newest_id(path), await newest_id(address), await newest_id(back)}) == 1


async def test_every_table_is_copied(path: Path) -> None:
    await (await Database.open(path)).close()
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    )
    tables = {name for (name,) in rows}
    connection.close()
    assert tables - SHARED_BY_PROCESSES - {"unfinished_copy"} == {leg.table for leg in LEGS}


@pytest.mark.parametrize("at", [1, 2, 4, 7, 12])
async def test_a_copy_that_broke_off_goes_on(
    path: Path, address: PostgresAddress, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    await fill(path, 8)
    monkeypatch.setattr(copying, "BATCH_SIZE", 3)
    insert, num_inserted = copying._insert, 0

    async def insert_some(*given: object) -> None:
        nonlocal num_inserted
        num_inserted += 1
        if num_inserted == at:
            raise KeyboardInterrupt
        await insert(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(copying, "_insert", insert_some)
    assert await _broken_off(path, address)
    with pytest.raises(StorageError, match="broke off"):
        async with in_use(address):
            pass
    other = path.with_name("other.sqlite3")
    await fill(other)
    with pytest.raises(StorageError, match="not a copy of this one"):
        await copy(other, address, lambda _: None)
    num_before = num_inserted
    await copy(path, address, lambda _: None)
    assert num_inserted > num_before
    assert await everything(address) == await everything(path)
    async with in_use(address):
        pass


async def _broken_off(source: Location, target: Location) -> bool:
    try:
        await copy(source, target, lambda _: None)
    except KeyboardInterrupt:
        return True
    return False


async def test_a_target_that_holds_something_and_a_source_that_is_not_there_are_refused(
    path: Path, address: PostgresAddress
) -> None:
    with pytest.raises(StorageError, match="no database at"):
        await copy(path, address, lambda _: None)
    assert not is_there(path)
    await fill(path)
    await copy(path, address, lambda _: None)
    with pytest.raises(StorageError, match="something in the database"):
        await copy(path, address, lambda _: None)
    with pytest.raises(StorageError, match="same"):
        await copy(path, path, lambda _: None)


async def test_nothing_is_copied_while_a_bot_runs(path: Path, address: PostgresAddress) -> None:
    await fill(path)
    async with in_use(path):
        with pytest.raises(InUseError):
            await copy(path, address, lambda _: None)
    async with in_use(address, is_shared=True):
        with pytest.raises(InUseError):
            await copy(path, address, lambda _: None)


async def test_a_copy_that_differs_is_found_and_stays_unfinished(
    path: Path, address: PostgresAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(path)
    join = copying._join

    async def join_and_spoil(original: Database, copied: Database) -> None:
        await join(original, copied)
        async with copied.transaction() as transaction:
            await transaction.fetch_all("UPDATE settings SET value = '4'")

    monkeypatch.setattr(copying, "_join", join_and_spoil)
    with pytest.raises(StorageError, match="differs from the original in the table settings"):
        await copy(path, address, lambda _: None)
    with pytest.raises(StorageError, match="broke off"):
        async with in_use(address):
            pass


def test_the_command_says_what_it_did(
    path: Path, address: PostgresAddress, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(fill(path))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE messages SET content = ? WHERE id = 1", ("a\0b",))
    connection.commit()
    connection.close()
    assert main(["copy", str(path), address.url]) == 0
    said = capsys.readouterr().out
    assert "Replaced null characters with \N{REPLACEMENT CHARACTER} in 1 text." in said
    assert "16  messages" in said
    assert "Done: both are the same." in said
    assert main(["copy", str(path), address.url]) == 1
    assert "something in the database" in capsys.readouterr().err


_THIRD = CHANNEL.__class__(channel_id=300, kind=CHANNEL.kind, guild_id=7)


def _question(discord_id: int) -> NewQuestion:

    return NewQuestion(discord_id, 42, "Ada", "And?", NOW, (Quote("Bob", "Said.", 5, 6),))
