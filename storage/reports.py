"""Who reported which answer. Knows nothing of what the answers say."""

from __future__ import annotations

from datetime import datetime

from storage.database import Database
from storage.rows import to_milliseconds

_INSERT = """
INSERT INTO reports (answer_id, by_user_id, reported_at) VALUES (?, ?, ?)
ON CONFLICT (answer_id, by_user_id) DO NOTHING RETURNING answer_id"""


class Reports:
    """Reports, one a person and answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, answer_id: int, *, by_user_id: int, at: datetime) -> bool:
        """Record a report; return False if this person had reported this answer already."""
        params = (answer_id, by_user_id, to_milliseconds(at))
        async with self._database.transaction() as transaction:
            return bool(await transaction.fetch_all(_INSERT, params))
