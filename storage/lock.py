"""Keeps two running programs from one database: each would take the other's answers for interrupted ones.

The lock belongs to the process and ends with it, however it ends; the file it is on stays. Blocking code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import DatabaseUnavailableError
from storage.sqlite_errors import storage_error

_IN_USE = (
    "Another Llamacord is running with this database."
    " Stop it first, or set DATABASE to another file for this one."
)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the lock beside `database`. Raises `DatabaseUnavailableError` where somebody else holds it."""
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
            raise DatabaseUnavailableError(_IN_USE) from error
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
