"""How what PostgreSQL reports becomes an error of the storage."""

from __future__ import annotations

import psycopg
from psycopg import errors as sql

from storage.errors import (
    BUSY,
    UNEXPECTED,
    CorruptDatabaseError,
    DatabaseUnavailableError,
    NotFoundError,
    StorageError,
    StorageFullError,
    TransactionLostError,
)

AWAY = (
    "The database server cannot be reached at the moment."
    " Check that it runs, and that the address in DATABASE is right."
)
REFUSED = "The database server does not let us in: check user, password and name of the database in DATABASE."
UNSETTLED = (
    "The connection to the database broke while something was saved, so it may or may not be stored."
    " Look whether it is, and do it again if not."
)
_FULL = "The disk of the database server is full, so nothing can be saved. Free some space there."
_CORRUPT = "The database is damaged. The log of the PostgreSQL server tells more; restore a backup."
_READ_ONLY = "The database server only lets us read. Set DATABASE to one that can be written."
_DENIED = (
    "The user in DATABASE may not make or change tables in this database."
    " Let it own the database, or grant it CREATE on the schema."
)
_GONE = (
    sql.AdminShutdown,
    sql.CrashShutdown,
    sql.CannotConnectNow,
    sql.IdleInTransactionSessionTimeout,
    sql.TooManyConnections,
    sql.ConnectionException,
    # A newer version of us has changed a table, for which this connection had prepared statements.
    sql.FeatureNotSupported,
)
_SOON = ("starting up", "shutting down", "recovery mode", "too many", "connection slots")
_UNDONE = (sql.DeadlockDetected, sql.SerializationFailure)
_LOGIN = (sql.InvalidAuthorizationSpecification, sql.InvalidPassword, sql.InvalidCatalogName)
_TABLE: tuple[tuple[type[psycopg.Error] | tuple[type[psycopg.Error], ...], StorageError], ...] = (
    ((sql.LockNotAvailable, sql.QueryCanceled), DatabaseUnavailableError(BUSY)),
    ((sql.DiskFull, sql.OutOfMemory), StorageFullError(_FULL)),
    ((sql.DataCorrupted, sql.IndexCorrupted), CorruptDatabaseError(_CORRUPT)),
    (sql.ReadOnlySqlTransaction, DatabaseUnavailableError(_READ_ONLY)),
    (sql.InsufficientPrivilege, DatabaseUnavailableError(_DENIED)),
    (_UNDONE, TransactionLostError(AWAY)),
)


def is_lost(error: psycopg.Error) -> bool:
    """Tell whether the connection is no more, or could not be made, and another one may do."""
    if isinstance(error, _GONE):
        return True
    if _is_refused(error):
        return False
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and error.sqlstate is None


def postgres_error(error: psycopg.Error) -> StorageError:
    """Return the storage's error for `error`; raise it from the original."""
    if _is_refused(error):
        return DatabaseUnavailableError(REFUSED)
    if is_lost(error):
        return DatabaseUnavailableError(AWAY)
    # Deletes cascade, so a broken foreign key can only be an insert below something that is gone.
    if isinstance(error, sql.ForeignKeyViolation):
        return NotFoundError()
    for kinds, meant in _TABLE:
        if isinstance(error, kinds):
            return type(meant)(str(meant))
    return StorageError(UNEXPECTED)


def _is_refused(error: psycopg.Error) -> bool:
    """Tell whether the server is there and does not want us. While connecting only its words tell."""
    words = str(error)
    is_answer = error.sqlstate is None and "FATAL: " in words
    return isinstance(error, _LOGIN) or (is_answer and not any(soon in words for soon in _SOON))
