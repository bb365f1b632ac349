"""The storage's exceptions, and how what SQLite and the file system report becomes one of them.

StorageError
├── DatabaseUnavailableError   cannot be opened or reached, locked by another program, not writable, or closed
│   ├── TransactionLostError   the connection broke, and of the transaction nothing is stored
│   └── InUseError             another Llamacord has what was to be locked
├── StorageFullError           no space left for it
├── CorruptDatabaseError       damaged, or not a database of this program
├── NewerDatabaseError         made by a newer version of this program
├── DuplicateMessageError      this Discord message is stored already
└── NotFoundError              the conversation or message is gone
    └── RegenerationRefusedError   the answer is there, but cannot be regenerated
        ├── AnswerPendingError     it is still being written, or written anew
        └── NotNewestAnswerError   the conversation has gone on since

Each message is a sentence that says what is wrong and what to do.
"""

from __future__ import annotations

import errno
import sqlite3


class StorageError(Exception):
    """Base of everything the storage raises on purpose."""


class DatabaseUnavailableError(StorageError):
    """The database cannot be opened, read or written at the moment."""


class TransactionLostError(DatabaseUnavailableError):
    """The connection broke in the middle of a transaction: nothing of it is stored, so it can be repeated."""


class InUseError(DatabaseUnavailableError):
    """A lock is held by somebody else."""

    def __init__(
        self,
        message: str = (
            "Another Llamacord is running with this database."
            " Stop it first, or set DATABASE to another one for this one."
        ),
    ) -> None:
        super().__init__(message)


class StorageFullError(StorageError):
    """There is no space left for the database."""


class CorruptDatabaseError(StorageError):
    """The file is damaged, or is not a database of this program."""


class NewerDatabaseError(StorageError):
    """The schema is newer than this program."""


class DuplicateMessageError(StorageError):
    """A Discord message is stored already."""

    def __init__(self, discord_id: int) -> None:
        self.discord_id = discord_id
        super().__init__("This message was taken already.")


class NotFoundError(StorageError):
    """A conversation or message is gone."""

    def __init__(self, message: str = "This conversation or message no longer exists.") -> None:
        super().__init__(message)


class RegenerationRefusedError(NotFoundError):
    """The answer is there, but cannot be regenerated."""


class AnswerPendingError(RegenerationRefusedError):
    """The answer is still being written."""

    def __init__(self) -> None:
        super().__init__("This answer is still being written. Wait until it ends, or stop it.")


class NotNewestAnswerError(RegenerationRefusedError):
    """The conversation has gone on since this answer."""

    def __init__(self) -> None:
        super().__init__("Only the newest answer of a conversation can be regenerated.")


CLOSED = "The database is closed."
BUSY = "Another program is using the database. Close that program, or try again later."
FULL = "The disk is full, so nothing can be saved. Free some space on the disk that holds the database."
CORRUPT = (
    "The database file is damaged or is not a database."
    " Restore a backup, or move the file away and a new one is made at the next start."
)
UNREACHABLE = (
    "The database cannot be opened or written."
    " Check that its folder exists, is writable for this user, and that its disk works."
)
UNEXPECTED = "The database refused an operation. The log tells more."
# https://www.sqlite.org/rescode.html: the low byte of an extended code is the primary code.
_PRIMARY_MASK = 0xFF
_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_UNREACHABLE_CODES = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOLFS,
}
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


def storage_error(error: sqlite3.Error | OSError) -> StorageError:
    """Return the storage's error for `error`; raise it from the original."""
    if isinstance(error, OSError):
        return (
            StorageFullError(FULL) if error.errno in _FULL_ERRNOS else DatabaseUnavailableError(UNREACHABLE)
        )
    # An error that Python's own module raised has no code.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    primary = code & _PRIMARY_MASK
    if primary in _BUSY_CODES:
        return DatabaseUnavailableError(BUSY)
    # SHMSIZE: the index of the write-ahead log could not grow, which is how a full disk shows there.
    if primary == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return StorageFullError(FULL)
    if primary in _CORRUPT_CODES:
        return CorruptDatabaseError(CORRUPT)
    if primary in _UNREACHABLE_CODES:
        return DatabaseUnavailableError(UNREACHABLE)
    # Deletes cascade, so a broken foreign key can only be an insert below something that is gone.
    if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
        return NotFoundError()
    return StorageError(UNEXPECTED)
