"""SQLite: one file and one connection, used by one transaction or reader at a time, in the order they came.

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
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

import aiosqlite

from storage.backend import Lock, Params, Run, Within
from storage.errors import (
    CLOSED,
    CORRUPT,
    CorruptDatabaseError,
    DatabaseUnavailableError,
    NotFoundError,
    StorageError,
    storage_error,
)
from storage.migrations import Migration
from storage.opening import open_connection


class SqliteBackend:
    """One SQLite file. One process owns it (`opening.locked`), so locks are those of this process."""

    erases = True

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._turn = asyncio.Lock()
        self._is_closed = False

    @classmethod
    async def open(cls, path: Path, busy_timeout_s: float, migrations: Sequence[Migration]) -> Self:
        """Open or create the file; see `Database.open`."""
        # Not on aiosqlite's thread: an open that fails there leaves it behind, to complain of a closed loop.
        opened = await asyncio.to_thread(open_connection, path, busy_timeout_s, migrations)
        return cls(await _wrapped(opened))

    async def read(self, sql: str, params: Params) -> list[sqlite3.Row]:
        """Run one statement in its turn."""
        async with self._turn:
            return await self._run(sql, params)

    @contextlib.asynccontextmanager
    async def write(self, within: Within | None) -> AsyncIterator[Run]:  # noqa: ARG002 - it excludes all
        """Take the write lock, whatever the transaction touches."""
        async with self._turn:
            try:
                await self._run("BEGIN IMMEDIATE")
                yield self._run
                await self._run("COMMIT")
            except BaseException:
                await self._rollback()
                raise

    @contextlib.asynccontextmanager
    async def lock(self, _name: str, /, **_how: bool) -> AsyncIterator[Lock]:
        """Hold nothing more than `Database` does: nobody else is there."""
        yield Lock()

    async def scrub(self) -> None:
        """Empty the write-ahead log; it is emptied anyway as it is used, and on closing."""
        await self.read("PRAGMA wal_checkpoint(TRUNCATE)", ())

    async def check(self) -> None:
        """Read the whole file. Takes a second per 500 MB."""
        rows = await self.read("PRAGMA quick_check(1)", ())
        if not rows or rows[0][0] != "ok":
            raise CorruptDatabaseError(CORRUPT)

    async def close(self) -> None:
        """Close in its turn."""
        async with self._turn:
            if not self._is_closed:
                self._is_closed = True
                await self._connection.close()

    async def abandon(self) -> None:
        """Wait for nothing, perhaps its thread is gone too; off the loop aiosqlite does not."""
        self._is_closed = True
        await asyncio.to_thread(self._connection.stop)

    async def _run(self, sql: str, params: Params = ()) -> list[sqlite3.Row]:
        if self._is_closed:
            raise DatabaseUnavailableError(CLOSED)
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
