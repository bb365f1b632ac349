"""Which process has which shards, as far as the processes of one bot can agree on that in a table.

Whoever has shards counts a number up as a sign of life. Whoever wants them takes those of nobody, or those of
somebody whose number has stood still: how long that must be is the caller's, by the caller's own clock, so
that no two clocks are ever compared. Knows nothing of processes and of Discord.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storage.database import Database, act
from storage.scopes import FLEET
from storage.shards import Shards

_HELD = "SELECT * FROM shard_leases WHERE holder IS NOT NULL ORDER BY shard_id"
_DROP_OTHERS = "DELETE FROM shard_leases WHERE holder IS NULL AND num_shards <> ?"
_TAKE = """
INSERT INTO shard_leases (shard_id, num_shards, holder, beat, wants, attended_at) VALUES (?, ?, ?, 0, 0, 0)
ON CONFLICT (shard_id) DO UPDATE SET holder = excluded.holder, beat = 0, wants = 0
RETURNING shard_id, attended_at"""
_BEAT = """
UPDATE shard_leases SET beat = beat + 1, wants = ?, attended_at = COALESCE(?, attended_at)
WHERE holder = ? RETURNING shard_id"""
_ATTEND = "UPDATE shard_leases SET attended_at = ? WHERE holder = ?"
_GIVE_BACK = "UPDATE shard_leases SET holder = NULL WHERE holder = ?"
_END = "UPDATE shard_leases SET holder = NULL WHERE holder = ? AND beat = ? RETURNING shard_id"


@dataclass(frozen=True, slots=True)
class Lease:
    """One shard that somebody has. beat: their newest sign of life. wants: see `Leases.beat`."""

    shard_id: int
    num_shards: int
    holder: str
    beat: int
    wants: int = 0


class Leases:
    """The table. `holder` is a name that no two processes ever have."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Lease]:
        """Return what somebody has, by shard."""
        rows = await self._database.fetch_all(_HELD)
        return [
            Lease(row["shard_id"], row["num_shards"], row["holder"], row["beat"], row["wants"])
            for row in rows
        ]

    @act
    async def take(self, shards: Shards, holder: str) -> Mapping[int, int] | None:
        """Take shards that nobody has; None where somebody has one, or deals out another number of them.

        Return for each until when it was attended to last, in milliseconds since 1970; 0 is not known.
        """
        async with self._database.transaction(FLEET) as transaction:
            for row in await transaction.fetch_all(_HELD):
                if row["num_shards"] != shards.count or row["shard_id"] in shards.ids:
                    return None
            await transaction.fetch_all(_DROP_OTHERS, (shards.count,))
            taken: dict[int, int] = {}
            for shard_id in shards.ids:
                (row,) = await transaction.fetch_all(_TAKE, (shard_id, shards.count, holder))
                taken[row["shard_id"]] = row["attended_at"]
        return taken

    async def beat(self, holder: str, *, attended_at: int | None = None, wants: int = 0) -> list[int]:
        """Give a sign of life; return the shards that `holder` still has.

        attended_at: until when all that was said in them has come to it, None where that is not so now.
        wants: how much it has to do, as any number that those of others are compared with.
        """
        # A single statement without a transaction: it waits for nobody who writes, however long they take.
        rows = await self._database.fetch_all(_BEAT, (wants, attended_at, holder))
        return sorted(row["shard_id"] for row in rows)

    @act
    async def give_back(self, holder: str, *, attended_at: int | None = None) -> None:
        """Have no shards any more; see `beat`."""
        async with self._database.transaction(FLEET) as transaction:
            if attended_at is not None:
                await transaction.fetch_all(_ATTEND, (attended_at, holder))
            await transaction.fetch_all(_GIVE_BACK, (holder,))

    @act
    async def end(self, dead: Sequence[Lease]) -> None:
        """Let those have no shards any more who have given no sign of life since."""
        async with self._database.transaction(FLEET) as transaction:
            for holder, beat in sorted({(one.holder, one.beat) for one in dead}):
                await transaction.fetch_all(_END, (holder, beat))
