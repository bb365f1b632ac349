"""A few connections to PostgreSQL, made when they are needed. Knows no statement.

Not psycopg_pool: its pauses between two tries grow to minutes while a server is away, and a bot whose
database is there again should go on at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from psycopg.pq import TransactionStatus

from storage.errors import CLOSED, DatabaseUnavailableError
from storage.postgres.connection import Connection


class Pool:
    """At most `size` connections, each used by one at a time. Those that broke are dropped."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self._room = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._num_used = 0
        self._unused = asyncio.Event()
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection, as soon as one is free. Raises `psycopg.Error` if none can be made."""
        async with self._room:
            if self._is_closed:
                raise DatabaseUnavailableError(CLOSED)
            self._num_used += 1
            connection: Connection | None = None
            try:
                connection = self._idle.pop() if self._idle else await self._connect()
                yield connection
            finally:
                self._num_used -= 1
                if connection is not None:
                    await self._take_back(connection)
                if not self._num_used:
                    self._unused.set()

    async def forget(self) -> None:
        """Drop the idle connections: one of them turned out to be broken."""
        while self._idle:
            await self._idle.pop().close()

    async def close(self) -> None:
        """Close all connections, after those who use them. Closing twice is fine."""
        self._is_closed = True
        while self._num_used:
            self._unused.clear()
            await self._unused.wait()
        await self.forget()

    async def abandon(self) -> None:
        """Close those that nobody uses, and wait for nobody."""
        self._is_closed = True
        await self.forget()

    async def _take_back(self, connection: Connection) -> None:
        is_fine = connection.info.transaction_status is TransactionStatus.IDLE
        if is_fine and not self._is_closed:
            self._idle.append(connection)
        else:
            await connection.close()
