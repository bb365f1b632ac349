"""Deletes in the background what is not kept any longer.

Knows how long things are kept and when to look; what is deleted how, the storage knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from storage.database import Database
from storage.errors import StorageError
from storage.people import People
from storage.retention import Retention
from storage.rows import utc_now


@dataclass(frozen=True, slots=True)
class Keeping:
    """In days.

    retention_days: messages; 0 is until somebody deletes them. grace_days: what belongs to servers that we
    were removed from and to deleted channels.
    """

    retention_days: int = 0
    grace_days: int = 30


_log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 3600.0
PRIVATE_TIME = timedelta(hours=1)
"""How long a private question may take: Discord shows its answer within a quarter of an hour."""
PAUSE_S = 0.05
"""Between two transactions, for whoever else uses the disk."""


class Sweeper:
    """Looks from time to time. `keeping` may be replaced meanwhile; `on_deleted` is told of deletions."""

    def __init__(
        self, retention: Retention, keeping: Keeping, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self.keeping = keeping
        self.on_deleted: Callable[[], None] = lambda: None
        self._retention = retention
        self._now = now

    async def run(self) -> None:
        """Sweep for ever; what the storage cannot do now it may be able to do later."""
        while True:
            try:
                await self.sweep()
            except StorageError as error:
                _log.error("What is too old could not be deleted: %s", error)
            except Exception:  # noqa: BLE001 - the edge of a task: what is too old must go, whatever went wrong
                _log.exception("A sweep failed; the next one is in %.0f s.", SWEEP_INTERVAL_S)
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def sweep(self) -> None:
        """Delete everything that is due."""
        num_questions = await self._sweep_old()
        is_place_gone = await self._sweep_gone()
        num_private = await self._retention.delete_private(begun_before=self._now() - PRIVATE_TIME)
        if num_questions or is_place_gone or num_private:
            await self._retention.scrub()
            self.on_deleted()
            _log.info("Deleted what is not kept any longer: %d questions for their age", num_questions)

    async def _sweep_old(self) -> int:
        if not self.keeping.retention_days:
            return 0
        than = self._now() - timedelta(days=self.keeping.retention_days)
        num_questions = 0
        while num_deleted := await self._retention.delete_older(than):
            num_questions += num_deleted
            await asyncio.sleep(PAUSE_S)
        return num_questions

    async def _sweep_gone(self) -> bool:
        before = self._now() - timedelta(days=self.keeping.grace_days)
        is_any = False
        while await self._retention.delete_gone(gone_before=before):
            is_any = True
            await asyncio.sleep(PAUSE_S)
        return is_any


@dataclass(frozen=True, slots=True)
class Privacy:
    """The parts, each of which knows its own business."""

    people: People
    retention: Retention
    sweeper: Sweeper

    @classmethod
    def over(cls, database: Database, keeping: Keeping) -> Privacy:
        """Return the parts over one database."""
        retention = Retention(database)
        return cls(People(database), retention, Sweeper(retention, keeping))
