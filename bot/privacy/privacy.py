"""What people may do with their data, put together."""

from __future__ import annotations

from dataclasses import dataclass

from bot.privacy.keeping import Keeping
from bot.privacy.sweeper import Sweeper
from storage.database import Database
from storage.people import People
from storage.retention import Retention


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
