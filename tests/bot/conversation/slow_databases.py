"""Databases in which a statement takes as long as a test says, in virtual time and the same order each time.

The loop stands still while a statement runs, so whatever happens in between happens again when it is tried
again. SQLite lies in memory. PostgreSQL is real, and so are its locks; who has to wait for one waits in
virtual time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import sqlite3
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from storage.database import Database
from storage.migrations import MIGRATIONS
from storage.opening import _prepare
from storage.sqlite import SqliteBackend

if TYPE_CHECKING:
    import aiosqlite
    import psycopg

    from storage.address import PostgresAddress
    from storage.postgres.connection import Connection

Pause = Callable[[], Awaitable[None]]
"""What each statement waits for; it never ends for a process that was killed."""
LOOK_S = 0.002
"""How often it is asked whether a statement waits for a lock."""
PATIENT_S = 600.0


class SlowDatabase(Protocol):
    """One database that several processes may use. Each example of a test begins with an empty one."""

    def empty(self) -> None: ...

    def opened(self, pause: Pause) -> Database:
        """Return it for one process. Call it on the event loop."""

    def killed(self, database: Database) -> None:
        """End what a process was doing in it."""


@functools.cache
def _template() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    _prepare(connection, MIGRATIONS)
    return connection


class SlowSqlite:
    """Satisfies `SlowDatabase`, for one process at a time."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        weakref.finalize(self, self.connection.close)

    def empty(self) -> None:
        _template().backup(self.connection)
        self.connection.execute("PRAGMA foreign_keys = ON")

    def opened(self, pause: Pause) -> Database:
        return Database(SqliteBackend(cast("aiosqlite.Connection", _SlowSqlite(self, pause))))

    def killed(self, database: Database) -> None:
        self.connection.rollback()


class _SlowSqlite:
    """A connection, where the backend expects aiosqlite's."""

    def __init__(self, owner: SlowSqlite, pause: Pause) -> None:
        self._owner = owner  # with which the connection goes
        self._connection = owner.connection
        self._pause = pause

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    async def execute_fetchall(self, sql: str, params: Sequence[Any] = ()) -> list[sqlite3.Row]:
        await self._pause()
        return self._connection.execute(sql, params).fetchall()

    async def close(self) -> None:
        """It is in memory, and used again."""


class SlowPostgres:
    """Satisfies `SlowDatabase`."""

    def __init__(self, address: PostgresAddress) -> None:
        self._address = address
        self._control = self._connected()
        self._idle: list[psycopg.Connection[Any]] = []
        self._used: dict[psycopg.Connection[Any], Pause] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor()
        self._freed = asyncio.Event()

    def empty(self) -> None:
        tables = self._control.execute(
            b"SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'llamacord_schema'"
        ).fetchall()
        names = ", ".join(name for (name,) in tables)
        self._control.execute(f"TRUNCATE {names} RESTART IDENTITY".encode())

    def opened(self, pause: Pause) -> Database:
        from storage.postgres.backend import PostgresBackend

        slow = self

        class Backend(PostgresBackend):
            whose = pause

            async def _connect(self) -> Connection:
                await pause()
                return cast("Connection", _SlowConnection(slow, slow.take(pause), pause))

        return Database(Backend(self._address, "public", PATIENT_S))

    def killed(self, database: Database) -> None:
        pause = type(database._backend).__dict__["whose"]
        for one in [one for one, whose in self._used.items() if whose is pause]:
            del self._used[one]
            self._end(one)

    def close(self) -> None:
        """Close all connections."""
        self._threads.shutdown()
        for one in (self._control, *self._idle, *self._used):
            one.close()

    def drop(self, connection: psycopg.Connection[Any]) -> None:
        """Take a connection back, for others if it is of use."""
        if self._used.pop(connection, None) is None:
            return  # its process was killed
        if not connection.closed and _is_idle(connection):
            self._idle.append(connection)
        else:
            self._end(connection)

    def _end(self, connection: psycopg.Connection[Any]) -> None:
        """Close a connection, and wait until the server has noticed."""
        pid = connection.info.backend_pid
        self._control.execute(b"SELECT pg_terminate_backend($1::int)", (pid,))
        while self._control.execute(b"SELECT 1 FROM pg_stat_activity WHERE pid = $1", (pid,)).fetchall():
            pass
        connection.close()
        self._free()

    async def execute(self, connection: psycopg.Connection[Any], sql: bytes, params: Sequence[Any]) -> Any:
        """Run a statement; while others are in a transaction, it may have to wait for them."""
        if all(_is_idle(other) for other in self._used if other is not connection):
            return connection.execute(sql, params)
        pause = self._used[connection]
        work = self._threads.submit(connection.execute, sql, params)
        try:
            while self._is_blocked(work, connection):
                await self._freed.wait()
                await pause()
        except asyncio.CancelledError:
            if not work.done():
                connection.cancel_safe()
                concurrent.futures.wait({work})
            raise
        finally:
            if work.done() and _is_idle(connection):
                self._free()
        return work.result()

    def _is_blocked(self, work: concurrent.futures.Future[Any], connection: psycopg.Connection[Any]) -> bool:
        """Wait until a statement has come to its end (False) or waits for a lock (True)."""
        while not concurrent.futures.wait({work}, LOOK_S).done:
            (row,) = self._control.execute(
                b"SELECT cardinality(pg_blocking_pids($1::int))", (connection.info.backend_pid,)
            ).fetchall()
            if row[0]:
                return True
        return False

    def _free(self) -> None:
        """Have those who wait for a lock look again."""
        self._freed.set()
        self._freed = asyncio.Event()

    def take(self, pause: Pause) -> psycopg.Connection[Any]:
        """Return a connection for a process."""
        connection = self._idle.pop() if self._idle else self._connected()
        self._used[connection] = pause
        return connection

    def _connected(self) -> psycopg.Connection[Any]:
        from storage.postgres.connection import connect_now

        return connect_now(self._address, lock_timeout_s=PATIENT_S)


class _SlowConnection:
    """A connection, where the backend expects one of psycopg's that is asynchronous."""

    def __init__(self, database: SlowPostgres, connection: psycopg.Connection[Any], pause: Pause) -> None:
        self._database = database
        self._connection = connection
        self._pause = pause
        self.info = connection.info
        self.closed = False

    async def execute(self, sql: bytes, params: Sequence[Any] = ()) -> _SlowCursor:
        await self._pause()
        return _SlowCursor(await self._database.execute(self._connection, sql, params))

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._database.drop(self._connection)


class _SlowCursor:
    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        self._cursor = cursor
        self.nextset = cursor.nextset
        self.statusmessage = cursor.statusmessage
        self.description = cursor.description

    async def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()


def _is_idle(connection: psycopg.Connection[Any]) -> bool:
    from psycopg.pq import TransactionStatus

    return connection.info.transaction_status is TransactionStatus.IDLE


@contextlib.contextmanager
def slow_postgres(address: PostgresAddress) -> Iterator[SlowPostgres]:
    """Use a database so."""
    database = SlowPostgres(address)
    try:
        yield database
    finally:
        database.close()
