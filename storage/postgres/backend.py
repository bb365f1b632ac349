"""PostgreSQL as our database: statements, transactions that are never doubled, and locks across processes.

Readers have connections of their own and see what is committed. A process writes one transaction at a time,
in the order in which they were asked for. Among processes, a transaction that names its conversation excludes
those of the same conversation, and one that names none excludes all. So under READ COMMITTED nothing that
a transaction has read changes until it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Self, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from storage.address import PostgresAddress
from storage.backend import Lock, Params, Run, Within
from storage.errors import (
    CLOSED,
    UNEXPECTED,
    DatabaseUnavailableError,
    NotFoundError,
    StorageError,
    TransactionLostError,
)
from storage.migrations import Migration
from storage.postgres.connection import Connection, Record, connect, lock_key
from storage.postgres.dialect import translated
from storage.postgres.errors import AWAY, UNSETTLED, is_lost, postgres_error
from storage.postgres.locks import HeldLock
from storage.postgres.pool import Pool
from storage.postgres.schema import prepare

NUM_READERS = 3
PATIENCE_S = 10.0
"""How long a server that is away is waited for, before a statement or the begin of a transaction fails."""
_PAUSE_S = 0.2
WATCH_S = 5.0
"""Between two looks whether a lock is still held."""
_MAX_NUMBER = 2**63 - 1
_CONVERSATIONS = 1 << 40
"""More than there are conversations; the lock of one is a number so far above a multiple of this."""
Result = TypeVar("Result")


class PostgresBackend:
    """One database on a server. `patience_s` and `watch_s` are for tests."""

    erases = False
    patience_s = PATIENCE_S
    watch_s = WATCH_S

    def __init__(self, address: PostgresAddress, schema: str, busy_timeout_s: float) -> None:
        self._address = address
        self._schema = schema
        self._busy_timeout_s = busy_timeout_s
        self._all = lock_key(schema, "all")
        self._one = lock_key(schema, "one") // _CONVERSATIONS * _CONVERSATIONS
        self._readers = Pool(self._connect, NUM_READERS)
        self._writer: Connection | None = None
        self._turn = asyncio.Lock()
        self._is_closed = False

    @classmethod
    async def open(
        cls, address: PostgresAddress, busy_timeout_s: float, migrations: Sequence[Migration]
    ) -> Self:
        """Bring the schema up to date; see `Database.open`."""
        if sys.platform == "win32":
            raise StorageError("Llamacord speaks to PostgreSQL on Linux and macOS only.")
        schema = await asyncio.to_thread(prepare, address, busy_timeout_s, migrations)
        return cls(address, schema, busy_timeout_s)

    async def read(self, sql: str, params: Params) -> list[Record]:
        """Run one statement, again on another connection where one broke."""

        async def work() -> list[Record]:
            async with self._readers.connection() as connection:
                return await _run(connection, sql, params)

        return await self._persistently(work)

    @contextlib.asynccontextmanager
    async def write(self, within: Within | None) -> AsyncIterator[Run]:
        """Wait for the writer's turn and the locks."""
        asked_s = asyncio.get_running_loop().time()
        async with self._turn:
            if self._is_closed:
                raise DatabaseUnavailableError(CLOSED)
            connection, number = await self._persistently(lambda: self._begin(within), asked_s)

            async def run(sql: str, params: Params = ()) -> list[Record]:
                try:
                    return await _run(connection, sql, params)
                except psycopg.Error as error:
                    raise (TransactionLostError(AWAY) if is_lost(error) else postgres_error(error)) from error

            try:
                yield run
                await self._commit(connection, number)
            except BaseException:
                await _rollback(connection)
                raise

    @contextlib.asynccontextmanager
    async def lock(self, name: str, /, *, waits: bool, is_shared: bool) -> AsyncIterator[Lock]:
        """Hold a lock on a connection of its own, which is watched."""
        held = HeldLock(self._connect_for_lock, lock_key(self._schema, name), is_shared=is_shared)
        await self._persistently(lambda: held.take(waits=waits))
        watch = asyncio.create_task(held.watch(self.watch_s))
        try:
            yield held.lock
        finally:
            watch.cancel()
            await asyncio.wait([watch])
            await held.release()

    async def scrub(self) -> None:
        """Do nothing: the server overwrites dead rows and its log in its own time."""

    async def check(self) -> None:
        """Read a row of each table; all that lies on the disk only the server's own tools can check."""
        for row in await self.read("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()", ()):
            await self.read(f'SELECT * FROM "{row["tablename"]}" LIMIT 1', ())  # noqa: S608 - a table's name

    async def close(self) -> None:
        """Close after those who use a connection."""
        async with self._turn:
            self._is_closed = True
            await self._drop_writer()
        await self._readers.close()

    async def abandon(self) -> None:
        """Close what nobody uses."""
        self._is_closed = True
        await self._drop_writer()
        await self._readers.abandon()

    async def _connect(self) -> Connection:
        return await connect(self._address, lock_timeout_s=self._busy_timeout_s)

    async def _connect_for_lock(self) -> Connection:
        return await connect(self._address, lock_timeout_s=0)

    async def _persistently(
        self, work: Callable[[], Awaitable[Result]], since_s: float | None = None
    ) -> Result:
        """Do what changes nothing, again and again for as long as the server is away and patience lasts.

        since_s: when it was asked for; those who waited for one another are patient together.
        """
        loop = asyncio.get_running_loop()
        end = (loop.time() if since_s is None else since_s) + self.patience_s
        while True:
            try:
                return await work()
            except psycopg.Error as error:
                if not is_lost(error) or loop.time() >= end:
                    raise postgres_error(error) from error
                await self._readers.forget()
            await asyncio.sleep(_PAUSE_S)

    async def _begin(self, within: Within | None) -> tuple[Connection, str]:
        """Begin a transaction and take its locks; return its connection and its number."""
        if self._writer is None or self._writer.closed:
            self._writer = await self._connect()
        connection = self._writer
        function = "pg_advisory_xact_lock" if within is None else "pg_advisory_xact_lock_shared"
        try:
            cursor = await connection.execute(
                f"BEGIN; SELECT pg_current_xact_id()::text, {function}({self._all})".encode()
            )
            cursor.nextset()
            (row,) = await cursor.fetchall()
            if within is not None:
                # Only those who have all to themselves move messages to another conversation.
                one = f"SELECT pg_advisory_xact_lock({self._one} + id) FROM ({within.sql}) AS one (id)"  # noqa: S608
                await _run(connection, one, within.params)
        except BaseException:
            await _rollback(connection)
            raise
        return connection, str(row[0])

    async def _commit(self, connection: Connection, number: str) -> None:
        """Commit; where the answer is lost, find out what became of it."""
        try:
            cursor = await connection.execute(b"COMMIT")
        except psycopg.Error as error:
            if not is_lost(error):
                raise postgres_error(error) from error
            if not await self._is_committed(number):
                raise TransactionLostError(AWAY) from error
            return
        if cursor.statusmessage != "COMMIT":  # a statement had failed, and somebody went on regardless
            raise StorageError(UNEXPECTED)

    async def _is_committed(self, number: str) -> bool:
        end = asyncio.get_running_loop().time() + self.patience_s
        while True:
            try:
                (row,) = await self.read("SELECT pg_xact_status(?::xid8)", (number,))
            except StorageError as error:
                raise DatabaseUnavailableError(UNSETTLED) from error
            if row[0] != "in progress":
                return bool(row[0] == "committed")
            if asyncio.get_running_loop().time() >= end:
                raise DatabaseUnavailableError(UNSETTLED)
            await asyncio.sleep(_PAUSE_S)

    async def _drop_writer(self) -> None:
        if self._writer is not None:
            await self._writer.close()
            self._writer = None


async def _run(connection: Connection, sql: str, params: Params) -> list[Record]:
    if any(isinstance(value, int) and not -_MAX_NUMBER <= value <= _MAX_NUMBER for value in params):
        raise NotFoundError  # a number that no column can hold is nothing's number
    cursor = await connection.execute(translated(sql).encode(), params)
    return await cursor.fetchall() if cursor.description is not None else []


async def _rollback(connection: Connection) -> None:
    """End a transaction that is to leave nothing, and the connection with it where that fails."""
    if connection.closed or connection.info.transaction_status is TransactionStatus.IDLE:
        return
    try:
        await connection.execute(b"ROLLBACK")
    except psycopg.Error:
        await connection.close()
    except BaseException:
        await connection.close()
        raise
