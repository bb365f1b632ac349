"""How the database file is opened: folder, connection, settings of SQLite, schema.

Blocking code, run in a thread. Knows nothing of asyncio.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from storage.errors import StorageError
from storage.migrations import Migration, check_readable, migrate
from storage.sqlite_errors import storage_error

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
