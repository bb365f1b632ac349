"""How the migrations are applied to PostgreSQL, and how a database is recognised as ours.

Blocking code, run in a thread. The version is the only row of a table of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from storage.address import PostgresAddress
from storage.errors import CorruptDatabaseError, StorageError
from storage.migrations import Migration, check_version
from storage.postgres.connection import connect_now, lock_key
from storage.postgres.dialect import schema_statements
from storage.postgres.errors import postgres_error

_FOREIGN = (
    "The database on the PostgreSQL server belongs to another program."
    " Set DATABASE to an empty one, made for Llamacord alone."
)
_HAS_TABLE = """
SELECT tablename = 'llamacord_schema' AS is_ours FROM pg_tables WHERE schemaname = current_schema()
ORDER BY 1 DESC LIMIT 1"""
_MAKE_TABLE = "CREATE TABLE llamacord_schema (version BIGINT NOT NULL)"


def prepare(address: PostgresAddress, lock_timeout_s: float, migrations: Sequence[Migration]) -> str:
    """Bring the schema to its newest version, a transaction a step; return the schema's name.

    Raises `CorruptDatabaseError` for another program's database, `NewerDatabaseError` for a later schema, and
    other `StorageError`s. Several processes may do this at once: each step waits its turn.
    """
    with connect_now(address, lock_timeout_s=lock_timeout_s) as connection:
        try:
            schema = _one(connection, "SELECT coalesce(current_schema(), '')")
            while not _step(connection, migrations, lock_key(schema, "schema")):
                pass
        except psycopg.Error as error:
            raise postgres_error(error) from error
    return str(schema)


def _step(connection: psycopg.Connection[Any], migrations: Sequence[Migration], lock: int) -> bool:
    """Apply the next step; return whether there was none left."""
    with connection.transaction():
        timeout = _one(connection, "SELECT current_setting('lock_timeout')")
        # Another process may take minutes for a step over many rows.
        connection.execute("SET LOCAL lock_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock($1)", (lock,))
        connection.execute("SELECT set_config('lock_timeout', $1, true)", (timeout,))
        version = _version(connection)
        check_version(version, len(migrations))
        is_newest = version == len(migrations)
        for statement in () if is_newest else migrations[version].statements:
            for translated in schema_statements(statement):
                connection.execute(translated.encode())
        # Even when nothing is to do: to read succeeds on a server that takes no writes, this does not.
        connection.execute("UPDATE llamacord_schema SET version = $1", (version + (not is_newest),))
    return is_newest


def _version(connection: psycopg.Connection[Any]) -> int:
    found = connection.execute(_HAS_TABLE).fetchone()
    if found is None:
        connection.execute(_MAKE_TABLE)
        connection.execute("INSERT INTO llamacord_schema VALUES (0)")
    elif not found["is_ours"]:
        raise CorruptDatabaseError(_FOREIGN)
    return int(_one(connection, "SELECT version FROM llamacord_schema"))


def _one(connection: psycopg.Connection[Any], sql: str) -> Any:
    row = connection.execute(sql.encode()).fetchone()
    if row is None:
        raise StorageError(_FOREIGN)
    return row[0]
