"""What one process knows of the others that are the same bot, and how it acts in step with them.

A process that is alone has all of that without a table and without waiting. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum

from bot.fleet.choice import ShardChoice
from bot.fleet.holding import Holding
from bot.tasks import Tasks
from storage.database import Database, Transaction
from storage.errors import StorageError
from storage.fleet import News, NewsTable, agree, agreed, claim_once, database_now_ms, next_turn, unclaim
from storage.leases import Leases
from storage.scopes import FLEET
from storage.shards import EVERYTHING, Shards
from storage.types import to_milliseconds, utc_now

_log = logging.getLogger(__name__)

HEAR_S = 1.0
"""How often it is asked what others did: so long something that was decided may not hold elsewhere."""
CLEAR_UP_S = 600.0
TURN_S = 5.5
"""Between two turns: a little more than Discord wants, since not all requests are equally fast."""
LATE_S = 0.4
"""Whoever is later than this for their turn takes another one."""
LONGEST_TURN_S = 40.0
"""Whoever would wait longer asks again later, so that turns of the dead are not waited for."""
ONCE_S = 3600.0
_MODEL = "model"


class Kind(StrEnum):
    """What others are told."""

    CONFIG_CHANGED = "config"
    """Of a server."""
    OPTED_OUT = "opted-out"
    FORGOTTEN = "forgotten"
    """Of a person. It is told before and after."""
    MODEL_CHANGED = "model"
    """Of all; about nothing."""


Heard = Callable[[News], Awaitable[None]]
Clock = Callable[[Transaction], Awaitable[int]]
"""Tells the time by one clock for all, in milliseconds."""


class Fleet:
    """This process among the others. Without `holding` there are no others."""

    def __init__(
        self,
        shards: Shards = EVERYTHING,
        holding: Holding | None = None,
        database: Database | None = None,
        clock: Clock = database_now_ms,
    ) -> None:
        self.shards = shards
        self._clock = clock
        self._holding = holding
        self._database = database
        self._me = secrets.token_hex(8)
        self._news = None if database is None else NewsTable(database, self._me)
        self._tasks = Tasks()
        self._num_heard = 0
        self._never = asyncio.Event()

    @property
    def has_others(self) -> bool:
        """Whether other processes may be there."""
        return self._holding is not None

    @property
    def lost(self) -> asyncio.Event:
        """Set when our shards are another process's."""
        return self._never if self._holding is None else self._holding.lost

    @property
    def attended_at(self) -> Mapping[int, int]:
        """See `Holding.attended_at`."""
        return {} if self._holding is None else self._holding.attended_at

    def may_act(self) -> bool:
        """Tell whether nobody else can act for our shards now."""
        return self._holding is None or self._holding.may_act

    async def until_may_act(self) -> bool:
        """Wait until we may act; return False where others act for us from now on."""
        return self._holding is None or await self._holding.until_may_act()

    def share(self) -> float:
        """Return what this process may do of what all may do together, from 0 to 1."""
        return 1.0 if self._holding is None else self._holding.share

    def watch(self, attending: Callable[[], bool], wants: Callable[[], int]) -> None:
        """Say with each sign of life how we are; see `Holding`."""
        if self._holding is not None:
            self._holding.attending, self._holding.wants = attending, wants

    async def tell(self, kind: Kind, about: int) -> None:
        """Tell the others. Raises `StorageError`."""
        if self._news is not None:
            await self._news.tell(News(kind, about))

    async def choose_model(self, mark: int) -> None:
        """Have all others use a model, also those that start later. Raises `StorageError`."""
        if self._database is not None:
            async with self._database.transaction(FLEET) as transaction:
                await agree(transaction, _MODEL, mark)
            await self.tell(Kind.MODEL_CHANGED, 0)

    async def chosen_model(self) -> int | None:
        """Return the mark of the model that all are to use, None where nobody chose one."""
        return None if self._database is None else await agreed(self._database, _MODEL)

    def tell_soon(self, kind: Kind, about: int) -> None:
        """Tell the others without waiting for it."""
        if self._news is not None:
            self._tasks.start(self.tell(kind, about), "telling the other processes")

    def listen(self, heard: Heard) -> None:
        """Have `heard` told what others did, from now on."""
        if self._news is not None:
            self._tasks.start(self._listen(self._news, heard), "listening to the other processes")
            self._tasks.start(_clear_up(self._news), "forgetting old news")

    async def turn(self, name: str) -> None:
        """Wait for our turn among all processes, `TURN_S` after the one before. Raises `TimeoutError`."""
        if self._database is None:
            return
        loop = asyncio.get_running_loop()
        given_up_at_s = loop.time() + LONGEST_TURN_S
        while loop.time() < given_up_at_s:
            at_s = loop.time()
            try:
                async with self._database.transaction(FLEET) as transaction:
                    now_ms = await self._clock(transaction)
                    turn_ms = await next_turn(
                        transaction,
                        name,
                        at=now_ms,
                        apart=int(TURN_S * 1000),
                        within=int((given_up_at_s - at_s) * 1000),
                        longest=int(LONGEST_TURN_S * 1000),
                    )
            except StorageError:
                turn_ms = None
            if turn_ms is None:
                await asyncio.sleep(HEAR_S)
                continue
            due_s = at_s + (turn_ms - now_ms) / 1000
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            if loop.time() < due_s + LATE_S:
                return
        raise TimeoutError

    async def once(self, name: str) -> bool:
        """Tell whether something that one process does for all is ours to do now. Raises `StorageError`."""
        if self._database is None:
            return True
        async with self._database.transaction(FLEET) as transaction:
            now_ms = await self._clock(transaction)
            return await claim_once(transaction, name, at=now_ms, lasts=int(ONCE_S * 1000))

    async def not_done(self, name: str) -> None:
        """Leave what could not be done to the next one who asks."""
        if self._database is not None:
            async with self._database.transaction(FLEET) as transaction:
                await unclaim(transaction, name)

    async def start(self) -> None:
        """Hear of all that is told from now on. Raises `StorageError`."""
        if self._news is not None:
            self._num_heard = await self._news.newest()

    async def close(self) -> None:
        """Tell and hear nothing more, and give the shards back."""
        await self._tasks.close()
        if self._holding is not None:
            await self._holding.close()

    async def _listen(self, table: NewsTable, heard: Heard) -> None:
        while True:
            try:
                self._num_heard, news = await table.since(self._num_heard)
            except StorageError as error:
                _log.debug("What others did could not be asked: %s", error)
                news = []
            for one in news:
                try:
                    await heard(one)
                except Exception:  # noqa: BLE001 - the edge of a task: what comes next is heard
                    _log.exception("What another process did was not followed")
            await asyncio.sleep(HEAR_S)


async def _clear_up(table: NewsTable) -> None:
    while True:
        await asyncio.sleep(CLEAR_UP_S)
        try:
            await table.clear_up()
        except StorageError as error:
            _log.debug("Old news could not be deleted yet: %s", error)


@asynccontextmanager
async def fleet_of(database: Database, choice: ShardChoice) -> AsyncIterator[Fleet]:
    """Have shards until the end of the `async with`. Raises `ShardsTakenError` or `StorageError`."""
    me = f"{utc_now():%Y%m%d%H%M%S}-{secrets.token_hex(8)}"
    holding = Holding(Leases(database), me, now_ms=lambda: to_milliseconds(utc_now()))
    fleet = Fleet(await holding.claim(choice), holding, database)
    try:
        if holding.came_first:  # as a bot of one process is after a restart
            async with database.transaction(FLEET) as transaction:
                await agree(transaction, _MODEL, None)
        await fleet.start()
        yield fleet
    finally:
        await fleet.close()
