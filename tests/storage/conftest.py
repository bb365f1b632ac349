"""A real database in a temporary folder, and a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.conversations import Conversations
from storage.database import Database

NOW = datetime(2026, 10, 4, 12, 30, 15, 123000, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "llamacord.sqlite3"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with await Database.open(path, busy_timeout_s=0.2) as opened:
        yield opened


@pytest.fixture
def conversations(database: Database) -> Conversations:
    return Conversations(database, now=lambda: NOW)
