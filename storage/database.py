"""The face of the database, whichever it is: reads, transactions and locks. Knows no table and no SQL."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from storage import opening
from storage.address import Location, PostgresAddress
from storage.backend import Backend, Lock, Params, Row, Run, Value, Within
from storage.errors import CLOSED, DatabaseUnavailableError, InUseError, StorageError, TransactionLostError
from storage.migrations import MIGRATIONS, Migration
from storage.sqlite import SqliteBackend

__all__ = ["Database", "Lock", "Row", "Transaction", "Value", "Within", "act", "in_use"]

_NUM_TRIES = 3
Given = ParamSpec("Given")
Result = TypeVar("Result")


def act(
    work: Callable[Given, Coroutine[Any, Any, Result]],
) -> Callable[Given, Coroutine[Any, Any, Result]]:
    """Mark what is one transaction: where that was undone because its connection broke, it is done anew."""

    @functools.wraps(work)
    async def done(*given: Given.args, **named: Given.kwargs) -> Result:
        for _ in range(_NUM_TRIES - 1):
            with contextlib.suppress(TransactionLostError):
                return await work(*given, **named)
        return await work(*given, **named)

    return done


class Transaction:
    """Statements that take effect together or not at all. Of use only inside its `async with`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._is_open = True

    async def fetch_all(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one statement and return its rows; a write returns what its RETURNING names."""
        if not self._is_open:
            raise RuntimeError("This transaction has ended.")
        return await self._run(sql, params)

    async def fetch_one(self, sql: str, params: Params = ()) -> Row | None:
        """Run one statement and return its first row."""
        rows = await self.fetch_all(sql, params)
        return rows[0] if rows else None

    def _end(self) -> None:
        self._is_open = False


class Database:
    """One database, used from one event loop. Make it with `open`; close it before its loop."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._writers: set[asyncio.Task[object] | None] = set()
        self._names: dict[str, _Name] = {}
        self.on_written: Callable[[], None] = lambda: None
        """Called after every transaction that came to its end."""

    @classmethod
    async def open(
        cls, location: Location, *, busy_timeout_s: float = 5.0, migrations: Sequence[Migration] = MIGRATIONS
    ) -> Self:
        """Open or create the database and bring its schema up to date.

        busy_timeout_s: how long a statement waits for a lock of another program.
        Raises `DatabaseUnavailableError`, `StorageFullError`, `CorruptDatabaseError`, `NewerDatabaseError`.
        """
        if not isinstance(location, PostgresAddress):
            return cls(await SqliteBackend.open(location, busy_timeout_s, migrations))
        try:
            from storage.postgres.backend import PostgresBackend
        except ImportError as error:
            raise StorageError(_NO_DRIVER) from error
        return cls(await PostgresBackend.open(location, busy_timeout_s, migrations))

    @property
    def erases(self) -> bool:
        """Whether deleted text is gone from the disk, too; else the server overwrites it in its own time."""
        return self._backend.erases

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close after the transaction that runs, if any; later calls are refused. Closing twice is fine."""
        if asyncio.get_running_loop() is not self._loop:
            await self._backend.abandon()
            return
        self._refuse_inside()
        await self._backend.close()

    async def fetch_all(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one reading statement and return its rows. It never sees half of a transaction."""
        self._refuse_inside()
        self._refuse_elsewhere()
        return await self._backend.read(sql, params)

    async def fetch_one(self, sql: str, params: Params = ()) -> Row | None:
        """Run one reading statement and return its first row."""
        rows = await self.fetch_all(sql, params)
        return rows[0] if rows else None

    @contextlib.asynccontextmanager
    async def transaction(self, within: Within | None = None) -> AsyncIterator[Transaction]:
        """Commit at the end, roll back on any exception, cancellation included.

        Nobody else writes meanwhile, in this process or another; with `within`, at least not in that
        conversation. Raises `TransactionLostError` where the connection broke and nothing of it is stored.
        """
        self._refuse_inside()
        self._refuse_elsewhere()
        task = asyncio.current_task()
        async with self._backend.write(within) as run:
            transaction = Transaction(run)
            self._writers.add(task)
            try:
                yield transaction
            finally:
                self._writers.discard(task)
                transaction._end()
        self.on_written()

    @contextlib.asynccontextmanager
    async def locked(self, name: str, *, waits: bool = True, is_shared: bool = False) -> AsyncIterator[Lock]:
        """Hold the lock of this name: one at a time among all who use this database, or several who share it.

        It is given back when this process dies. Where the connection broke and somebody else was quicker to
        take it, `Lock.lost` is set. With `waits` off, raises `InUseError` if it is not to be had at once.
        """
        self._refuse_inside()
        self._refuse_elsewhere()
        mine = self._names.setdefault(name, _Name())
        mine.num_users += 1
        try:
            async with (
                mine.held(waits=waits, is_shared=is_shared),
                self._backend.lock(name, waits=waits, is_shared=is_shared) as lock,
            ):
                yield lock
        finally:
            mine.num_users -= 1
            if not mine.num_users:
                del self._names[name]

    async def scrub(self) -> None:
        """Make deleted text unreadable, as far as that is possible: in SQLite's files. Best effort."""
        with contextlib.suppress(StorageError):
            self._refuse_inside()
            await self._backend.scrub()

    async def check(self) -> None:
        """Look for damage; raise `CorruptDatabaseError` if there is any."""
        self._refuse_inside()
        await self._backend.check()

    def _refuse_inside(self) -> None:
        if self._writers and asyncio.current_task() in self._writers:
            raise RuntimeError("Inside a transaction use the transaction, not the database.")

    def _refuse_elsewhere(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise DatabaseUnavailableError(CLOSED)


@contextlib.asynccontextmanager
async def in_use(
    location: Location, *, is_shared: bool = False, is_unfinished: bool = False
) -> AsyncIterator[Database]:
    """Open a database alone, or with others that share it. Raises `InUseError`, `StorageError`.

    Two bots that know nothing of each other would take each other's answers for interrupted ones. What was
    copied by half is refused, unless it may be `is_unfinished`.
    """
    async with contextlib.AsyncExitStack() as stack:
        if not isinstance(location, PostgresAddress):
            stack.enter_context(opening.locked(location))
        database = await stack.enter_async_context(await Database.open(location))
        await stack.enter_async_context(database.locked("in use", waits=False, is_shared=is_shared))
        if not is_unfinished and await database.fetch_all("SELECT 1 FROM unfinished_copy"):
            raise StorageError(_UNFINISHED)
        yield database


class _Name:
    """Who of this process holds the lock of a name."""

    def __init__(self) -> None:
        self.num_users = 0
        self._num_sharing = 0
        self._is_taken = False
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def held(self, *, waits: bool, is_shared: bool) -> AsyncIterator[None]:
        while self._is_taken or (self._num_sharing and not is_shared):
            if not waits:
                raise InUseError
            self._freed.clear()
            await self._freed.wait()
        self._is_taken, self._num_sharing = not is_shared, self._num_sharing + is_shared
        try:
            yield
        finally:
            self._is_taken, self._num_sharing = False, self._num_sharing - is_shared
            self._freed.set()


_UNFINISHED = (
    "A copy to this database was interrupted. Finish it with the same `python -m storage copy` command,"
    " or set DATABASE to another one."
)
_NO_DRIVER = (
    "DATABASE is the address of a PostgreSQL server, and the package that speaks to one is not installed."
    " Install it: .venv/bin/python -m pip install 'psycopg[binary]>=3.3,<3.4'"
)
