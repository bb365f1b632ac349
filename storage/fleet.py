"""What the processes of one bot tell each other: news, whose turn it is, and what is done once for all.

Knows nothing of what the news mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from storage.database import Database, Transaction, act
from storage.scopes import FLEET
from storage.types import to_milliseconds, utc_now

KEPT = timedelta(minutes=10)
"""How long news are kept; whoever has not heard of them by then has stopped."""

_COUNT = """
INSERT INTO counters (name, value) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET value = counters.value + 1 RETURNING value"""
_NEXT_TURN = """
INSERT INTO counters (name, value) VALUES (?1, ?2)
ON CONFLICT (name) DO UPDATE
SET value = CASE WHEN counters.value + ?3 BETWEEN ?2 AND ?5 THEN counters.value + ?3 ELSE ?2 END
WHERE counters.value + ?3 NOT BETWEEN ?4 + 1 AND ?5
RETURNING value"""
_CLAIM = """
INSERT INTO counters (name, value) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE counters.value NOT BETWEEN ? AND ?
RETURNING value"""
_NOW = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) AS now_ms"
_VALUE = "SELECT value FROM counters WHERE name = ?"
_FORGET_OLD = "DELETE FROM news WHERE told_at < ?"
_TELL = "INSERT INTO news (id, teller, kind, about, told_at) VALUES (?, ?, ?, ?, ?)"
_SINCE = "SELECT * FROM news WHERE id > ? AND teller <> ? ORDER BY id"


@dataclass(frozen=True, slots=True)
class News:
    """One thing that another process did. about: the id of a person or a server, as `kind` has it."""

    kind: str
    about: int


class NewsTable:
    """News, in the order in which they were told. `me` tells them to all others."""

    def __init__(self, database: Database, me: str, *, now: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._me = me
        self._now = now

    async def newest(self) -> int:
        """Return the number of what was told last; 0 is nothing."""
        row = await self._database.fetch_one(_VALUE, ("news",))
        return 0 if row is None else int(row["value"])

    @act
    async def tell(self, news: News) -> None:
        """Tell all others."""
        at = self._now()
        async with self._database.transaction(FLEET) as transaction:
            # In turn, so that no number is seen before a lower one.
            (row,) = await transaction.fetch_all(_COUNT, ("news", 1))
            await transaction.fetch_all(_FORGET_OLD, (to_milliseconds(at - KEPT),))
            told = (row["value"], self._me, news.kind, news.about, to_milliseconds(at))
            await transaction.fetch_all(_TELL, told)

    async def since(self, number: int) -> tuple[int, list[News]]:
        """Return the number of the newest, and what others told after `number`, oldest first."""
        newest = await self.newest()
        if newest <= number:
            return number, []
        rows = await self._database.fetch_all(_SINCE, (number, self._me))
        found = [News(row["kind"], row["about"]) for row in rows]
        return max([newest, *(row["id"] for row in rows)]), found

    @act
    async def clear_up(self) -> None:
        """Delete what is too old."""
        async with self._database.transaction(FLEET) as transaction:
            await transaction.fetch_all(_FORGET_OLD, (to_milliseconds(self._now() - KEPT),))


async def database_now_ms(transaction: Transaction) -> int:
    """Return the time by the clock of PostgreSQL, which is one for all processes."""
    row = await transaction.fetch_one(_NOW)
    return 0 if row is None else int(row["now_ms"])


async def next_turn(
    transaction: Transaction, name: str, *, at: int, apart: int, within: int, longest: int
) -> int | None:
    """Take the next turn and return when it is: not before `at`, and `apart` after the one before.

    None, and nothing is taken, where that would be later than `within` after `at`. A turn farther away than
    `longest`, for which nobody waits, comes of a clock that was wrong and no longer counts. All in one unit.
    """
    latest = at + longest + apart
    row = await transaction.fetch_one(_NEXT_TURN, (f"turn:{name}", at, apart, at + within, latest))
    return None if row is None else int(row["value"])


async def claim_once(transaction: Transaction, name: str, *, at: int, lasts: int) -> bool:
    """Tell whether something is the caller's to do: nobody claimed it within `lasts` before `at`."""
    return bool(await transaction.fetch_all(_CLAIM, (f"once:{name}", at, at - lasts + 1, at)))


async def agree(transaction: Transaction, about: str, value: int | None) -> None:
    """Note what holds for all, None where nothing does any more."""
    await transaction.fetch_all("DELETE FROM counters WHERE name = ?", (f"agreed:{about}",))
    if value is not None:
        await transaction.fetch_all(
            "INSERT INTO counters (name, value) VALUES (?, ?)", (f"agreed:{about}", value)
        )


async def agreed(database: Database, about: str) -> int | None:
    """Return what holds for all, None where nothing does."""
    row = await database.fetch_one(_VALUE, (f"agreed:{about}",))
    return None if row is None else int(row["value"])


async def unclaim(transaction: Transaction, name: str) -> None:
    """Leave to somebody else what was claimed and could not be done."""
    await transaction.fetch_all("DELETE FROM counters WHERE name = ?", (f"once:{name}",))
