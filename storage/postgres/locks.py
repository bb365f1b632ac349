"""A lock with a name that a whole process holds, on a connection of its own: it ends with that.

Knows nothing of transactions, whose locks end with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import psycopg

from storage.backend import Lock
from storage.errors import InUseError, StorageError
from storage.postgres.connection import Connection


class HeldLock:
    """One advisory lock, from `take` to `release`."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], key: int, *, is_shared: bool) -> None:
        self.lock = Lock()
        self._connect = connect
        self._key = key
        self._suffix = "_shared" if is_shared else ""
        self._connection: Connection | None = None

    async def take(self, *, waits: bool) -> None:
        """Take it. Raises `InUseError` if it does not wait and somebody else has it, `psycopg.Error`."""
        connection = await self._connect()
        try:
            which = "pg_advisory_lock" if waits else "pg_try_advisory_lock"
            (row,) = await (
                await connection.execute(f"SELECT {which}{self._suffix}({self._key})".encode())
            ).fetchall()
            if row[0] is False:
                raise InUseError
        except BaseException:
            await connection.close()
            raise
        self._connection = connection

    async def watch(self, interval_s: float) -> None:
        """Take it anew when its connection broke. Ends, and sets `lost`, when somebody else was quicker."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                if self._connection is None:
                    await self.take(waits=False)
                else:
                    await self._connection.execute(b"SELECT 1")
            except InUseError:
                self.lock.lost.set()
                return
            except (psycopg.Error, StorageError):
                await self.release()

    async def release(self) -> None:
        """Give it back, if it is held."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
