"""What a database has to offer to be one of ours, and the values that go in and out. Knows no database.

`Database` is the face of both: SQLite is in `sqlite.py`, PostgreSQL in `postgres/`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

Value = int | float | str | None
Params = Sequence[Value]


class Row(Protocol):
    """One row: its values by their names or places."""

    def __getitem__(self, key: Any, /) -> Any:
        """Return one value. Raises `IndexError` or `KeyError` where there is none."""

    def __iter__(self) -> Iterator[Any]:
        """Go through the values."""

    def keys(self) -> Iterable[str]:
        """Return the names of the columns."""


Run = Callable[[str, Params], Coroutine[Any, Any, list[Any]]]
"""Runs one statement and returns its rows. Placeholders are `?`, or `?1`, `?2` and so on."""


@dataclass(frozen=True, slots=True)
class Within:
    """The only conversation that a transaction touches: a query that returns its id, or nothing."""

    sql: str
    params: Params


class Lock:
    """A lock with a name, as long as it is held."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        """Set when somebody else may hold it now: the connection broke, and another one was quicker."""


class Backend(Protocol):
    """A database: what `Database` hands its calls on to. Errors are those of the storage."""

    erases: bool
    """Whether deleted text is gone from the disk, too, once `scrub` has run."""

    async def read(self, sql: str, params: Params) -> list[Any]:
        """Run one reading statement, which never sees half of a transaction."""

    def write(self, within: Within | None) -> AbstractAsyncContextManager[Run]:
        """Begin a transaction; commit at the end, roll back on any exception.

        Without `within` it has the whole database for itself; else it may run beside those that touch other
        conversations.
        """

    def lock(self, name: str, /, *, waits: bool, is_shared: bool) -> AbstractAsyncContextManager[Lock]:
        """Hold a lock; raises `InUseError` if somebody else has it and this one does not wait."""

    async def scrub(self) -> None:
        """Make deleted text unreadable, as far as that is possible here."""

    async def check(self) -> None:
        """Raise `CorruptDatabaseError` if anything is damaged."""

    async def close(self) -> None:
        """Close after what runs. Closing twice is fine."""

    async def abandon(self) -> None:
        """Close without waiting: the loop that all belonged to has ended."""
