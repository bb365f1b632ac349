"""Owns the connection to SQLite and the order in which it is used: one transaction at a time.

The only file that knows aiosqlite. Knows no table.

aiosqlite runs what it is given on one thread, first in, first out, and what was queued runs even if the
task that waits for it is cancelled. So a cancelled call waits for its statement (the connection is never
used while somebody's statement still runs, and the loop is not closed over a running one), and a rollback
that was queued is a rollback done.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import aiosqlite

from storage.errors import (
    CORRUPT,
    CorruptDatabaseError,
    DatabaseUnavailableError,
    NotFoundError,
    StorageError,
    storage_error,
)
from storage.migrations import MIGRATIONS, Migration
from storage.opening import open_connection

Value = int | float | str | None
Row = sqlite3.Row


class Transaction:
    """Statements that take effect together or not at all. Of use only inside its `async with`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_open = True

    async def fetch_all(self, sql: str, params: Sequence[Value] = ()) -> list[Row]:
        """Run one statement and return its rows; a write returns what its RETURNING names."""
        if not self._is_open:
            raise RuntimeError("This transaction has ended.")
        return await self._database._run(sql, params)

    async def fetch_one(self, sql: str, params: Sequence[Value] = ()) -> Row | None:
        """Run one statement and return its first row."""
        rows = await self.fetch_all(sql, params)
        return rows[0] if rows else None

    def _end(self) -> None:
        self._is_open = False


class Database:
    """One SQLite file, used from one event loop. Make it with `open`; close it before its loop."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._holder: asyncio.Task[object] | None = None
        self._is_closed = False
        self.on_written: Callable[[], None] = lambda: None
        """Called after every transaction that came to its end."""

    @classmethod
    async def open(
        cls, path: Path, *, busy_timeout_s: float = 5.0, migrations: Sequence[Migration] = MIGRATIONS
    ) -> Self:
        """Open or create the database and bring its schema up to date.

        busy_timeout_s: how long a statement waits for a lock of another program.
        Raises `DatabaseUnavailableError`, `StorageFullError`, `CorruptDatabaseError`, `NewerDatabaseError`.
        """
        # Not on aiosqlite's thread: an open that fails there leaves it behind, to complain of a closed loop.
        opened = await asyncio.to_thread(open_connection, path, busy_timeout_s, migrations)
        return cls(await _wrapped(opened))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close after the transaction that runs, if any; later calls are refused. Closing twice is fine."""
        if asyncio.get_running_loop() is not self._loop:
            # Its loop is gone and perhaps its thread, so wait for nothing; off the loop aiosqlite does not.
            self._is_closed = True
            await asyncio.to_thread(self._connection.stop)
            return
        async with self._turn():
            if not self._is_closed:
                self._is_closed = True
                await self._connection.close()

    async def fetch_all(self, sql: str, params: Sequence[Value] = ()) -> list[Row]:
        """Run one reading statement and return its rows. It never sees half of a transaction."""
        async with self._turn():
            return await self._run(sql, params)

    async def fetch_one(self, sql: str, params: Sequence[Value] = ()) -> Row | None:
        """Run one reading statement and return its first row."""
        rows = await self.fetch_all(sql, params)
        return rows[0] if rows else None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Take the write lock; commit at the end, roll back on any exception, cancellation included."""
        async with self._turn():
            transaction = Transaction(self)
            try:
                await self._run("BEGIN IMMEDIATE")
                yield transaction
                await self._run("COMMIT")
            except BaseException:
                await self._rollback()
                raise
            finally:
                transaction._end()
        self.on_written()

    async def scrub(self) -> None:
        """Make deleted text unreadable in the files too, by emptying the write-ahead log.

        Best effort: the log is emptied anyway as it is used, and on closing.
        """
        with contextlib.suppress(StorageError):
            await self.fetch_all("PRAGMA wal_checkpoint(TRUNCATE)")

    async def check(self) -> None:
        """Read the whole file; raise `CorruptDatabaseError` if it is damaged. Takes a second per 500 MB."""
        row = await self.fetch_one("PRAGMA quick_check(1)")
        if row is None or row[0] != "ok":
            raise CorruptDatabaseError(CORRUPT)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for the connection; tasks get it in the order they asked."""
        task = asyncio.current_task()
        if self._holder is not None and self._holder is task:
            raise RuntimeError("Inside a transaction use the transaction, not the database.")
        async with self._lock:
            self._holder = task
            try:
                yield
            finally:
                self._holder = None

    async def _run(self, sql: str, params: Sequence[Value] = ()) -> list[Row]:
        if self._is_closed or asyncio.get_running_loop() is not self._loop:
            raise DatabaseUnavailableError("The database is closed.")
        try:
            return list(await self._connection.execute_fetchall(sql, params))
        except asyncio.CancelledError:
            await self._settle()
            raise
        except OverflowError as error:  # a number that SQLite cannot hold is nothing's number
            raise NotFoundError from error
        except sqlite3.Error as error:
            raise storage_error(error) from error

    async def _settle(self) -> None:
        """Wait until everything queued so far has run, however often this task is cancelled."""
        while True:
            try:
                await self._connection.execute_fetchall("SELECT 1")
            except asyncio.CancelledError:
                continue
            return

    async def _rollback(self) -> None:
        """Undo the transaction, unless there is none: it failed to begin, or SQLite ended it itself."""
        if not self._is_closed and self._connection.in_transaction:
            with contextlib.suppress(StorageError):
                await self._run("ROLLBACK")


def _wrapped(opened: sqlite3.Connection) -> aiosqlite.Connection:
    """Return a connection yet to be awaited, whose thread never keeps the process alive.

    A thread inherits being a daemon from the thread that makes it, and aiosqlite offers no other way.
    """
    made: list[aiosqlite.Connection] = []
    maker = threading.Thread(
        target=lambda: made.append(aiosqlite.Connection(lambda: opened, iter_chunk_size=64)), daemon=True
    )
    maker.start()
    maker.join()
    return made[0]
