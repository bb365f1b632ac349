"""Copies one database to another, of whichever kinds: in batches, resumable, and compared at the end.

Each batch and how far it got are one transaction of the target; a bot refuses a target until all is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.address import Location, PostgresAddress
from storage.database import Database, Row, Transaction, Value, in_use
from storage.errors import StorageError
from storage.removals import note_removed

BATCH_SIZE = 500


@dataclass(frozen=True, slots=True)
class Leg:
    """A table, or a part of one, in the order of its key. later: columns that refer to what comes later."""

    table: str
    key: tuple[str, ...] = ("id",)
    where: str = "1 = 1"
    later: str | None = None

    @property
    def name(self) -> str:
        """What people are told that it is."""
        return self.table.replace("_", " ")


LEGS = (
    Leg("conversations", later="continues_id"),
    Leg("messages", where="role = 'user'"),
    Leg("messages", where="role = 'assistant'", later="superseded_by"),
    Leg("discord_messages", ("discord_id",)),
    Leg("quotes", ("message_id", "position")),
    Leg("settings", ("conversation_id", "key")),
    Leg("resets"),
    Leg("server_settings", ("guild_id", "key")),
    Leg("blocks", ("guild_id", "user_id")),
    Leg("reports", ("answer_id", "by_user_id")),
    Leg("opt_outs", ("user_id",)),
    Leg("departures", ("place", "discord_id")),
    Leg("unshown_endings", ("answer_id",)),
    Leg("summaries"),
    Leg("summed_up", ("summary_id", "message_id")),
)
"""All that is kept, each after what it refers to."""
NUMBERED = tuple(dict.fromkeys(leg.table for leg in LEGS if leg.key == ("id",)))
"""Tables whose ids must never come back."""

_NOT_EMPTY = (
    "There is something in the database to copy to already, and it is not a copy of this one that broke off."
    " Name an empty database."
)
_DIFFERS = (
    "The copy differs from the original in the table {table}. Was a bot running on one of them?"
    " Start again with an empty database."
)


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: rows by table, and texts in which null characters had to be replaced."""

    num_rows: dict[str, int]
    num_replaced: int


async def copy(source: Location, target: Location, tell: Callable[[str], None]) -> Copied:
    """Copy all that is kept, or go on with that. `tell` gets a line now and then.

    Raises `InUseError` while a bot runs with one of them, `StorageError`.
    """
    if isinstance(source, Path) and not source.exists():
        raise StorageError(f"There is no database at {source}.")
    if str(source) == str(target):
        raise StorageError("These are the same database.")
    origin = str(source.absolute() if isinstance(source, Path) else source)
    async with in_use(source) as original, in_use(target, is_unfinished=True) as copied:
        progress = await _progress(copied, origin)
        num_replaced = 0
        for number, leg in enumerate(LEGS[progress.leg :], progress.leg):
            tell(f"Copying {leg.name} …")
            last = progress.last if number == progress.leg else ()
            num_replaced += await _copy_leg(original, copied, number, leg, last)
        await _join(original, copied)
        tell("Comparing …")
        num_rows: dict[str, int] = {}
        for leg in LEGS:
            num_rows[leg.table] = num_rows.get(leg.table, 0) + await _compare(original, copied, leg)
        await _set_numbers(original, copied, source, target)
        async with copied.transaction() as transaction:
            await transaction.fetch_all("DELETE FROM unfinished_copy")
            await note_removed(transaction)  # what was still to be forgotten
    return Copied(num_rows, num_replaced)


@dataclass(frozen=True, slots=True)
class _Progress:
    leg: int
    last: tuple[Value, ...]


async def _progress(copied: Database, origin: str) -> _Progress:
    """Return how far an earlier copy got; begin one where the target is empty."""
    row = await copied.fetch_one("SELECT origin, leg, last FROM unfinished_copy")
    if row is not None and row["origin"] == origin:
        return _Progress(row["leg"], tuple(json.loads(row["last"])))
    for table in dict.fromkeys(leg.table for leg in LEGS):
        if row is not None or await copied.fetch_all(f"SELECT 1 FROM {table} LIMIT 1"):  # noqa: S608 - our own
            raise StorageError(_NOT_EMPTY)
    async with copied.transaction() as transaction:
        await transaction.fetch_all("INSERT INTO unfinished_copy VALUES (?, 0, '[]')", (origin,))
    return _Progress(0, ())


async def _copy_leg(
    original: Database, copied: Database, number: int, leg: Leg, last: tuple[Value, ...]
) -> int:
    """Copy one leg from behind a key; return how many texts were changed."""
    num_replaced = 0
    async for batch in _batches(original, leg, last):
        columns = list(batch[0].keys())
        values = [list(row) for row in batch]
        if leg.later is not None:
            for row in values:
                row[columns.index(leg.later)] = None
        num_replaced += sum(isinstance(value, str) and "\0" in value for row in values for value in row)
        async with copied.transaction() as transaction:
            await _insert(
                transaction, leg.table, columns, [[_plain(value) for value in row] for row in values]
            )
            await _note(transaction, number, _key(leg, batch[-1]))
    async with copied.transaction() as transaction:
        await _note(transaction, number + 1, ())
    return num_replaced


async def _batches(database: Database, leg: Leg, last: tuple[Value, ...] = ()) -> AsyncIterator[list[Row]]:
    key = ", ".join(leg.key)
    marks = ", ".join("?" * len(leg.key))
    while True:
        behind = f" AND ({key}) > ({marks})" if last else ""
        sql = f"SELECT * FROM {leg.table} WHERE {leg.where}{behind} ORDER BY {key} LIMIT ?"  # noqa: S608
        rows = await database.fetch_all(sql, (*last, BATCH_SIZE))
        if not rows:
            return
        yield rows
        last = _key(leg, rows[-1])


async def _insert(
    transaction: Transaction, table: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]
) -> None:
    marks = f"({', '.join('?' * len(columns))})"
    sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([marks] * len(rows))}"  # noqa: S608
    await transaction.fetch_all(sql, [value for row in rows for value in row])


async def _note(transaction: Transaction, leg: int, last: tuple[Value, ...]) -> None:
    await transaction.fetch_all("UPDATE unfinished_copy SET leg = ?, last = ?", (leg, json.dumps(last)))


async def _join(original: Database, copied: Database) -> None:
    """Fill in the columns that refer to what was not there yet."""
    for leg in LEGS:
        if leg.later is None:
            continue
        sql = f"SELECT id, {leg.later} AS later FROM {leg.table} WHERE {leg.later} IS NOT NULL"  # noqa: S608
        for row in await original.fetch_all(sql):
            async with copied.transaction() as transaction:
                update = f"UPDATE {leg.table} SET {leg.later} = ? WHERE id = ?"  # noqa: S608
                await transaction.fetch_all(update, (row["later"], row["id"]))


async def _compare(original: Database, copied: Database, leg: Leg) -> int:
    """Return how many rows there are. Raises `StorageError` where they are not the same on both sides."""
    num_rows, digest = await _digest(original, leg)
    if (num_rows, digest) != await _digest(copied, leg):
        raise StorageError(_DIFFERS.format(table=leg.table))
    return num_rows


async def _digest(database: Database, leg: Leg) -> tuple[int, str]:
    num_rows, digest = 0, hashlib.sha256()
    async for batch in _batches(database, leg):
        num_rows += len(batch)
        for row in batch:
            # By name: a column that was added later may stand elsewhere.
            values = sorted(zip(row.keys(), map(_plain, row), strict=True))
            digest.update(json.dumps(values).encode())
    return num_rows, digest.hexdigest()


async def _set_numbers(original: Database, copied: Database, source: Location, target: Location) -> None:
    """Let new ids go on behind those that were ever given."""
    for table in NUMBERED:
        if isinstance(source, PostgresAddress):
            sql = f"SELECT CASE WHEN is_called THEN last_value END AS number FROM {table}_id_seq"  # noqa: S608
            row = await original.fetch_one(sql)
        else:
            row = await original.fetch_one(
                "SELECT seq AS number FROM sqlite_sequence WHERE name = ?", (table,)
            )
        if row is None or not row["number"]:
            continue
        async with copied.transaction() as transaction:
            if isinstance(target, PostgresAddress):
                await transaction.fetch_all(f"SELECT setval('{table}_id_seq', ?)", (row["number"],))
            else:
                await transaction.fetch_all("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
                await transaction.fetch_all(
                    "INSERT INTO sqlite_sequence VALUES (?, ?)", (table, row["number"])
                )


def _key(leg: Leg, row: Row) -> tuple[Value, ...]:
    return tuple(row[name] for name in leg.key)


def _plain(value: Value) -> Value:
    """Return what every database can hold: PostgreSQL has no null characters in texts."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
