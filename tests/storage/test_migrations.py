"""Migrations: each and its record are one transaction, and the schema keeps its own rules."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from storage.database import Database
from storage.errors import CorruptDatabaseError, StorageError
from storage.migrations import MIGRATIONS, Migration, migrate

ADD_NOTES = Migration("notes", ("CREATE TABLE notes (id INTEGER PRIMARY KEY) STRICT",))
BROKEN = Migration("half", ("CREATE TABLE half (id INTEGER PRIMARY KEY) STRICT", "CREATE NONSENSE"))


def tables(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    return {name for (name,) in rows}


def content(path: Path) -> bytes:
    return path.read_bytes()


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    (value,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(value)


async def test_a_further_migration_keeps_what_is_there(path: Path) -> None:
    async with await Database.open(path) as database, database.transaction() as transaction:
        await transaction.fetch_all(
            "INSERT INTO conversations (channel_id, kind, created_at) VALUES (5, 'direct', 0)"
        )
    async with await Database.open(path, migrations=(*MIGRATIONS, ADD_NOTES)) as database:
        (row,) = await database.fetch_all("SELECT channel_id FROM conversations")
    assert row["channel_id"] == 5
    assert "notes" in tables(path)
    assert version(path) == len(MIGRATIONS) + 1


async def test_opening_again_changes_nothing(path: Path) -> None:
    await (await Database.open(path)).close()
    before = content(path)
    await (await Database.open(path)).close()
    assert content(path) == before


async def test_a_migration_that_fails_in_the_middle_leaves_the_old_version(path: Path) -> None:
    await (await Database.open(path)).close()
    with pytest.raises(StorageError):
        await Database.open(path, migrations=(*MIGRATIONS, ADD_NOTES, BROKEN))
    # The step before it was complete and stays; of the broken one nothing is left.
    assert version(path) == len(MIGRATIONS) + 1
    assert "half" not in tables(path)
    async with await Database.open(path, migrations=(*MIGRATIONS, ADD_NOTES)) as database:
        await database.check()


async def test_a_first_migration_that_fails_leaves_an_empty_database(path: Path) -> None:
    with pytest.raises(StorageError):
        await Database.open(path, migrations=(BROKEN,))
    assert version(path) == 0
    assert tables(path) == set()
    await (await Database.open(path)).close()


async def test_a_migration_that_breaks_references_is_rolled_back(path: Path) -> None:
    await (await Database.open(path)).close()
    orphan = Migration("orphan", ("INSERT INTO discord_messages VALUES (1, 999, 0)",))
    with pytest.raises(CorruptDatabaseError, match="contradict"):
        await Database.open(path, migrations=(*MIGRATIONS, orphan))
    assert version(path) == len(MIGRATIONS)


async def test_a_table_can_be_rebuilt_without_losing_what_refers_to_it(path: Path) -> None:
    async with await Database.open(path) as database, database.transaction() as transaction:
        await transaction.fetch_all(
            "INSERT INTO conversations (id, channel_id, kind, created_at) VALUES (1, 5, 'direct', 0)"
        )
        await transaction.fetch_all("INSERT INTO settings VALUES (1, 'top_k', '3', 9, 0)")
    rebuild = Migration(
        "rebuild",
        (
            "CREATE TABLE rebuilt (id INTEGER PRIMARY KEY, channel_id INTEGER, kind TEXT) STRICT",
            "INSERT INTO rebuilt SELECT id, channel_id, kind FROM conversations",
            "DROP TABLE conversations",
            "ALTER TABLE rebuilt RENAME TO conversations",
        ),
    )
    async with await Database.open(path, migrations=(*MIGRATIONS, rebuild)) as database:
        assert len(await database.fetch_all("SELECT 1 FROM settings")) == 1


def test_two_processes_that_migrate_at_once_apply_each_step_once(path: Path) -> None:
    path.parent.mkdir()
    first = sqlite3.connect(path, isolation_level=None)
    second = sqlite3.connect(path, isolation_level=None)
    migrate(first)
    migrate(second)
    first.close()
    second.close()
    assert version(path) == len(MIGRATIONS)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO conversations (channel_id, kind, created_at) VALUES (1, 'forum', 0)",
        "INSERT INTO conversations (channel_id, kind, created_at) VALUES ('general', 'channel', 0)",
        "INSERT INTO messages (conversation_id, role, state, author_name, content, created_at)"
        " VALUES (1, 'assistant', 'pending', '', '', 0)",
        "INSERT INTO messages (conversation_id, role, state, author_name, content, created_at, ended_at)"
        " VALUES (1, 'user', 'complete', 'Ada', '', 0, 0)",
        "INSERT INTO discord_messages VALUES (1, 999, 0)",
    ],
)
async def test_the_schema_refuses_what_makes_no_sense(database: Database, statement: str) -> None:
    async with database.transaction() as transaction:
        await transaction.fetch_all(
            "INSERT INTO conversations (id, channel_id, kind, created_at) VALUES (1, 5, 'direct', 0)"
        )
    with pytest.raises(StorageError):
        async with database.transaction() as transaction:
            await transaction.fetch_all(statement)
