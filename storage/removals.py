"""How often texts were removed for good, and up to which time of that all engines have forgotten them.

Counted in the transaction that removes: whoever is killed right after it still owes. Knows no engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage.database import Database, Transaction, act
from storage.scopes import FLEET

_COUNT = """
INSERT INTO counters (name, value) VALUES ('removed', 1)
ON CONFLICT (name) DO UPDATE SET value = counters.value + 1"""
_FORGOTTEN = """
INSERT INTO counters (name, value) VALUES ('forgotten', ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE counters.value < excluded.value"""
_COUNTS = "SELECT name, value FROM counters WHERE name IN ('removed', 'forgotten')"


@dataclass(frozen=True, slots=True)
class Removed:
    """num: how often. num_forgotten: how many of the first ones are forgotten."""

    num: int = 0
    num_forgotten: int = 0

    @property
    def is_owed(self) -> bool:
        """Whether something is still to be forgotten."""
        return self.num_forgotten < self.num


class Removals:
    """The count, over one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count(self) -> Removed:
        """Return how it stands."""
        values = {row["name"]: int(row["value"]) for row in await self._database.fetch_all(_COUNTS)}
        return Removed(values.get("removed", 0), values.get("forgotten", 0))

    @act
    async def forgotten(self, num: int) -> None:
        """Note that the first `num` are forgotten everywhere."""
        async with self._database.transaction(FLEET) as transaction:
            await transaction.fetch_all(_FORGOTTEN, (num,))


async def note_removed(transaction: Transaction) -> None:
    """Count what this transaction removes."""
    await transaction.fetch_all(_COUNT)
