"""Opening: what is set, and each way in which a file cannot be opened."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import Database
from storage.errors import (
    CorruptDatabaseError,
    DatabaseUnavailableError,
    NewerDatabaseError,
    StorageFullError,
    storage_error,
)
from storage.migrations import APPLICATION_ID, MIGRATIONS


def content(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def pragma(database: Database, name: str) -> object:
    (row,) = await database.fetch_all(f"PRAGMA {name}")
    return row[0]


async def test_opening_makes_the_folder_and_a_private_file(database: Database, path: Path) -> None:
    assert mode(path) == mode(path.with_name(path.name + "-wal")) == 0o600


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("journal_mode", "wal"),
        ("foreign_keys", 1),
        ("synchronous", 1),
        ("secure_delete", 1),
        ("busy_timeout", 200),
        ("application_id", APPLICATION_ID),
        ("user_version", len(MIGRATIONS)),
    ],
)
async def test_the_connection_is_set_up(database: Database, path: Path, name: str, value: object) -> None:
    assert await pragma(database, name) == value


async def test_a_sound_database_passes_the_check(database: Database) -> None:
    await database.check()


async def refused(path: Path) -> None:
    await Database.open(path, busy_timeout_s=0.05)


async def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Nothing but notes. " * 1000)
    before = content(path)
    with pytest.raises(CorruptDatabaseError, match="not a database"):
        await refused(path)
    assert content(path) == before


async def test_a_truncated_database_is_reported(path: Path) -> None:
    await opened_and_closed(path)
    overwrite(path, content(path)[:5000])
    with pytest.raises(CorruptDatabaseError):
        await refused(path)


async def test_damage_inside_the_file_is_found_by_the_check(path: Path) -> None:
    await opened_and_closed(path)
    data = bytearray(content(path))
    data[-4096:] = b"\xff" * 4096
    overwrite(path, bytes(data))
    async with await Database.open(path) as database:
        with pytest.raises(CorruptDatabaseError):
            await database.check()


async def test_the_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "browser.sqlite3"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    before = content(path)
    with pytest.raises(CorruptDatabaseError, match="another program"):
        await refused(path)
    assert content(path) == before


async def test_a_newer_schema_is_left_as_it_is(path: Path) -> None:
    await opened_and_closed(path)
    with sqlite3.connect(path) as newer:
        newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    before = content(path)
    with pytest.raises(NewerDatabaseError, match="Update Llamacord"):
        await refused(path)
    assert content(path) == before


async def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseUnavailableError, match="folder"):
        await refused(tmp_path / "file" / "data" / "x.sqlite3")


async def test_a_folder_is_not_a_database(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailableError):
        await refused(tmp_path)


# /proc refuses new files and writing even to root.
async def test_a_folder_that_takes_no_files_is_reported() -> None:
    with pytest.raises(DatabaseUnavailableError, match="writable"):
        await refused(Path("/proc/llamacord.sqlite3"))


async def test_a_file_that_cannot_be_written_is_reported() -> None:
    with pytest.raises(DatabaseUnavailableError, match="writable"):
        await refused(Path("/proc/version"))


def chattr(flag: str, path: Path) -> bool:
    program = shutil.which("chattr")
    command = [program or "false", flag, str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603


@pytest.fixture
def immutable(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "llamacord.sqlite3"
    asyncio.run(opened_and_closed(path))
    if not chattr("+i", path):
        pytest.skip("this user or file system cannot make a file immutable")
    yield path
    assert chattr("-i", path)


async def opened_and_closed(path: Path) -> None:
    await (await Database.open(path)).close()


async def test_an_immutable_file_is_reported(immutable: Path) -> None:
    with pytest.raises(DatabaseUnavailableError, match="writable"):
        await refused(immutable)


async def test_opening_while_another_program_writes_says_so(path: Path) -> None:
    await opened_and_closed(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailableError, match="Another program"):
        await refused(path)
    other.execute("ROLLBACK")
    other.close()
    await opened_and_closed(path)


def test_no_message_names_a_path_or_a_class() -> None:
    for error in (OSError(13, "Permission denied", "/srv/x"), OSError(28, "No space", "/srv/x")):
        assert "/srv" not in str(storage_error(error))
    assert isinstance(storage_error(OSError(28, "No space")), StorageFullError)
    assert "Error" not in str(storage_error(sqlite3.OperationalError("no such table: x")))
