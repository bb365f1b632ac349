"""How one connection to PostgreSQL is made and set up, and what its rows and numbers look like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumperUnknown, TextLoader

from storage.address import PostgresAddress
from storage.errors import StorageError
from storage.postgres.errors import postgres_error

Connection = psycopg.AsyncConnection[Any]

MIN_SERVER = 130_000
IDLE_IN_TRANSACTION_MS = 8_000
"""So long a process that hangs in a transaction holds up the others: until its shards are theirs."""
_OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    "application_name": "llamacord",
    "client_encoding": "utf8",
    # A server that is gone without a word is noticed in half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_BAD_ADDRESS = "DATABASE is not an address that PostgreSQL understands: {detail}"
_TOO_OLD = "PostgreSQL 13 or newer is needed, and the server is older. Update it."
_NOT_UTF8 = (
    "The database on the PostgreSQL server does not hold UTF-8 text."
    " Make another one: CREATE DATABASE llamacord ENCODING 'UTF8' TEMPLATE template0."
)

_POOLER = (
    "A pooler between us and PostgreSQL keeps no session on one connection, so locks would not hold."
    " Put the server's own address into DATABASE, or set the pooler to session mode."
)


class Record:
    """One row: its values by their names or places."""

    __slots__ = ("_places", "_values")

    def __init__(self, places: dict[str, int], values: Sequence[Any]) -> None:
        self._places = places
        self._values = values

    def __getitem__(self, key: int | str) -> Any:
        return self._values[self._places[key] if isinstance(key, str) else key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> list[str]:
        """Return the names of the columns."""
        return list(self._places)


def records(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> Callable[[Sequence[Any]], Record]:
    """Return what makes rows of a result."""
    places = {column.name: place for place, column in enumerate(cursor.description or ())}
    return lambda values: Record(places, values)


def conninfo(address: PostgresAddress) -> str:
    """Return what libpq is to be told; what the address says wins. Raises `StorageError`."""
    try:
        return make_conninfo("", **{**_OPTIONS, **conninfo_to_dict(address.url)})
    except psycopg.ProgrammingError as error:
        # libpq's words may repeat the address, with its password.
        detail = "check its parts, and write %40 for an @ in the password."
        raise StorageError(_BAD_ADDRESS.format(detail=detail)) from error


async def connect(address: PostgresAddress, *, lock_timeout_s: float) -> Connection:
    """Return a new connection outside of any transaction. Raises `psycopg.Error` or `StorageError`."""
    connection: Connection = await psycopg.AsyncConnection.connect(
        conninfo(address), autocommit=True, cursor_factory=psycopg.AsyncRawCursor, row_factory=records
    )
    try:
        set_up(connection.adapters)
        await connection.execute(settings(lock_timeout_s))
    except BaseException:
        await connection.close()
        raise
    return connection


def connect_now(address: PostgresAddress, *, lock_timeout_s: float) -> psycopg.Connection[Any]:
    """Do the same without a loop; look whether this server will do, too. Raises `StorageError`."""
    try:
        connection = _connect_now(address)
    except psycopg.Error as error:
        raise postgres_error(error) from error
    try:
        set_up(connection.adapters)
        connection.execute(settings(lock_timeout_s))
        if connection.info.server_version < MIN_SERVER:
            raise StorageError(_TOO_OLD)
        if connection.info.parameter_status("server_encoding") != "UTF8":
            raise StorageError(_NOT_UTF8)
        if _process(connection) != connection.info.backend_pid:
            _check_pooler(address, connection)
    except psycopg.Error as error:
        connection.close()
        raise postgres_error(error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_now(address: PostgresAddress) -> psycopg.Connection[Any]:
    return psycopg.connect(
        conninfo(address), autocommit=True, cursor_factory=psycopg.RawCursor, row_factory=records
    )


def _check_pooler(address: PostgresAddress, connection: psycopg.Connection[Any]) -> None:
    """Raise `StorageError` where a pooler has one process of the server work for several of its clients."""
    with _connect_now(address) as other:
        first, second = ([_process(one) for one in (connection, other)] for _ in range(2))
    if first != second or first[0] == first[1]:
        raise StorageError(_POOLER)


def _process(connection: psycopg.Connection[Any]) -> int:
    """Return which process of the server works for us now. (A pooler tells its clients another number.)"""
    row = connection.execute(b"SELECT pg_backend_pid()").fetchone()
    return int(row[0]) if row is not None else 0


def set_up(adapters: AdaptersMap) -> None:
    """Send all numbers as what the columns are, whatever their size, and take JSON as text."""
    adapters.register_dumper(int, Int8Dumper)
    adapters.register_dumper(str, StrDumperUnknown)
    for name in ("json", "jsonb"):
        adapters.register_loader(name, TextLoader)


def settings(lock_timeout_s: float) -> bytes:
    """Return the statement that a connection begins with. Not as libpq's options: poolers refuse those."""
    return (
        f"SELECT set_config('lock_timeout', '{round(lock_timeout_s * 1000)}', false),"
        f" set_config('idle_in_transaction_session_timeout', '{IDLE_IN_TRANSACTION_MS}', false),"
        " set_config('default_transaction_isolation', 'read committed', false)"
    ).encode()


def lock_key(schema: str, name: str) -> int:
    """Return the number of a lock; each schema has its own locks, though they are the whole database's."""
    digest = hashlib.blake2b(f"llamacord\0{schema}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
