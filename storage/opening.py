"""How the database file is opened: folder, connection, settings of SQLite, schema; and locked for others.

Two running programs would take each other's answers for interrupted ones. Blocking code, run in a thread.
Knows nothing of asyncio.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from storage.errors import InUseError, StorageError, storage_error
from storage.migrations import Migration, check_readable, migrate

MIN_SQLITE = (3, 37, 0)
"""STRICT tables and RETURNING."""


def open_connection(path: Path, busy_timeout_s: float, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Open or create the database at `path` with the newest schema; every failure is a `StorageError`.

    The connection may be handed to another thread, but be used by one at a time only.
    """
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        raise StorageError("SQLite 3.37 or newer is needed. Use a newer Python or a newer system.")
    try:
        _create_file(path)
        connection = sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as error:
        raise storage_error(error) from error
    try:
        _prepare(connection, migrations)
    except sqlite3.Error as error:
        connection.close()
        raise storage_error(error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _create_file(path: Path) -> None:
    """Make the folder and an empty file that only its owner may read: it will hold conversations."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)


def _prepare(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    connection.row_factory = sqlite3.Row
    check_readable(connection, len(migrations))
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    # Off while migrating: rebuilding a table must not cascade. `migrate` checks the keys itself.
    connection.execute("PRAGMA foreign_keys = OFF")
    migrate(connection, migrations)
    connection.execute("PRAGMA foreign_keys = ON")


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the lock beside `database`. Raises `InUseError` where somebody else holds it."""
    path = database.with_name(f"{database.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise storage_error(error) from error
    with file:
        try:
            _lock(file.fileno())
        except OSError as error:
            raise InUseError from error
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
