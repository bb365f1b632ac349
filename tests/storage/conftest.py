"""A real database of either kind, and a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.address import Location
from storage.conversations import Conversations
from storage.database import Database

NOW = datetime(2026, 10, 4, 12, 30, 15, 123000, tzinfo=UTC)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs a database on both kinds of it, but what looks at its file on SQLite alone."""
    if "location" in metafunc.fixturenames:
        kinds = ["sqlite"] if "path" in metafunc.definition._fixtureinfo.argnames else ["sqlite", "postgres"]
        metafunc.parametrize("kind", kinds, indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "llamacord.sqlite3"


@pytest.fixture
def location(kind: str, request: pytest.FixtureRequest) -> Iterator[Location]:
    if kind == "sqlite":
        yield request.getfixturevalue("path")
    else:
        with request.getfixturevalue("postgres").lent() as address:
            yield address


@pytest.fixture
async def database(location: Location) -> AsyncIterator[Database]:
    async with await Database.open(location, busy_timeout_s=0.2) as opened:
        yield opened


@pytest.fixture
def conversations(database: Database) -> Conversations:
    return Conversations(database, now=lambda: NOW)
