"""How a process comes to have its shards, keeps them, and notices that it has them no more.

Nobody's clock is compared with anybody else's: whoever is watched and gives no sign of life for `LEASE_S` is
taken for dead, and whoever could not give one for the shorter `FENCE_S` acts no more until it can again. So
two never act for one shard. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from bot.fleet.choice import ShardChoice
from bot.tasks import Tasks
from storage.errors import StorageError
from storage.leases import Lease, Leases
from storage.shards import Shards

_log = logging.getLogger(__name__)

BEAT_S = 2.0
FENCE_S = 7.0
LEASE_S = 10.0
"""Longer than the above by what a request takes that was begun just before."""
LOOK_S = 1.0
"""How often somebody who wants shards looks for some."""


class ShardsTakenError(Exception):
    """Another process has the shards. The message is a sentence for the operator."""


class Watch:
    """Looks at signs of life; tells who has given none for too long, and who is alive for certain."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}
        self._alive: set[str] = set()

    def look(self, leases: Sequence[Lease], now_s: float) -> list[Lease]:
        """Take in what stands in the table; return what the dead have."""
        beats = {one.holder: one.beat for one in leases}
        seen: dict[str, tuple[int, float]] = {}
        for holder, beat in beats.items():
            before = self._seen.get(holder)
            if before is not None and before[0] != beat:
                self._alive.add(holder)
            seen[holder] = before if before is not None and before[0] == beat else (beat, now_s)
        self._seen = seen
        dead = {holder for holder, (_, since_s) in seen.items() if now_s - since_s >= LEASE_S}
        self._alive = (self._alive & seen.keys()) - dead
        return [one for one in leases if one.holder in dead]

    def is_alive(self, holder: str) -> bool:
        """Tell whether somebody has been seen to give a sign of life."""
        return holder in self._alive


class Holding:
    """The shards of this process. `me`: a name that no other process ever has.

    With each sign of life it asks `attending`, whether all that is said in our shards comes to us, and
    `wants`, how many answers are being shown.
    """

    def __init__(self, leases: Leases, me: str, *, now_ms: Callable[[], int]) -> None:
        self.lost = asyncio.Event()
        """Set when another process has our shards."""
        self.attended_at: Mapping[int, int] = {}
        """For each shard until when somebody attended to it, in milliseconds since 1970; 0 is not known."""
        self.share = 1.0
        """Of what all processes may do together, what this one may."""
        self.attending: Callable[[], bool] = lambda: False
        self.wants: Callable[[], int] = lambda: 0
        self.shards: Shards | None = None
        self.came_first = False
        """Whether no other process had any shards then."""
        self._leases = leases
        self._me = me
        self._now_ms = now_ms
        self._watch = Watch()
        self._beat_at_s = -FENCE_S
        self._beaten = asyncio.Event()
        self._tasks = Tasks()

    @property
    def may_act(self) -> bool:
        """Whether nobody else can act for our shards now."""
        return not self.lost.is_set() and _now_s() < self._beat_at_s + FENCE_S

    async def until_may_act(self) -> bool:
        """Wait until we may act; return False where others act for us from now on."""
        while not self.may_act and not self.lost.is_set():
            await self._beaten.wait()
        return self.may_act

    async def claim(self, choice: ShardChoice) -> Shards:
        """Wait for shards, and have them from now on.

        Any shards are waited for as long as it takes; certain ones only until it is clear whether whoever has
        them is alive. Raises `ShardsTakenError`, and `StorageError` where the database is away at first.
        """
        shards = await self._take(choice)
        if shards is None:
            _log.info("Waiting for shards that no other process has")
        while shards is None:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(StorageError):
                shards = await self._take(choice)
        self.shards = shards
        _log.info("This process has the shards %s", shards)
        self._tasks.start(self._keep(), "keeping the shards")
        return shards

    async def close(self) -> None:
        """Act no more and give the shards back. Closing twice is fine."""
        await self._tasks.close()
        if self.shards is None:
            return
        attended_at, self._beat_at_s = self._attended_at, -FENCE_S
        try:
            await self._leases.give_back(self._me, attended_at=attended_at)
        except StorageError as error:
            _log.warning("The shards could not be given back, others get them a little later: %s", error)

    async def _take(self, choice: ShardChoice) -> Shards | None:
        """Take shards if there are any for us now. Raises `ShardsTakenError`."""
        found = await self._look()
        held = {one.shard_id for one in found}
        for one in found:
            is_in_the_way = one.num_shards != choice.count or (
                choice.is_fixed and any(one.shard_id in shards.ids for shards in choice.candidates())
            )
            if is_in_the_way and self._watch.is_alive(one.holder):
                raise ShardsTakenError(_taken(choice, one))
        for shards in choice.candidates():
            if not held.intersection(shards.ids):
                now_s = _now_s()
                taken = await self._leases.take(shards, self._me)
                if taken is not None:
                    self._beat_at_s, self.attended_at = now_s, taken
                    self.came_first = not found
                    return shards
        return None

    async def _look(self) -> list[Lease]:
        """Return what the living have; the dead have nothing from now on."""
        found = await self._leases.all()
        dead = self._watch.look(found, _now_s())
        if dead:
            _log.warning("A process that had %d shards has stopped", len(dead))
            await self._leases.end(dead)
            found = await self._leases.all()
        return found

    async def _keep(self) -> None:
        """Give signs of life until the shards are lost."""
        could = True
        while not self.lost.is_set():
            try:
                await self._beat()
            except StorageError as error:
                if could:
                    _log.warning("No sign of life could be given, so the bot may have to pause: %s", error)
                could = False
            else:
                could = True
            await asyncio.sleep(BEAT_S if could else LOOK_S)

    async def _beat(self) -> None:
        now_s = _now_s()
        ours = await self._leases.beat(self._me, attended_at=self._attended_at, wants=self.wants())
        if self.shards is None or ours != list(self.shards.ids):
            _log.error("Another process has our shards, since we gave no sign of life for too long")
            self.lost.set()
        else:
            self._beat_at_s = now_s
        self._beaten.set()  # whoever waits goes on, in the order in which they came
        self._beaten = asyncio.Event()
        if self.lost.is_set():
            return
        self.share = share_of(self._me, await self._look())

    @property
    def _attended_at(self) -> int | None:
        return self._now_ms() if self.may_act and self.attending() else None


def share_of(me: str, leases: Sequence[Lease]) -> float:
    """Return whose part of what all may do together is how large, from 0 to 1; all parts are 1. Pure.

    One half goes by how many shards everybody has, the other by how much they have to do.
    """
    wants = {one.holder: one.wants for one in leases}
    mine = sum(one.holder == me for one in leases) / len(leases) if leases else 1.0
    num_wanted = sum(wants.values())
    return (mine + (wants.get(me, 0) / num_wanted if num_wanted else mine)) / 2


def _taken(choice: ShardChoice, lease: Lease) -> str:
    if lease.num_shards != choice.count:
        return (
            f"Other processes use {lease.num_shards} shards in all, but SHARDS says {choice.count} here. Stop"
            " all of them, and start them with the same number."
        )
    if choice.count == 1:
        return (
            "Another Llamacord is running with this database. Stop it first, or share the work with SHARDS."
        )
    return f"Another process has shard {lease.shard_id} of {lease.num_shards}. Stop it, or change SHARDS."


def _now_s() -> float:
    return asyncio.get_running_loop().time()
