"""The world that every end-to-end test plays in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from storage.address import Location
from tests.bot.e2e.world import World, open_world


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked so on both kinds of database."""
    if "location" in metafunc.fixturenames and metafunc.definition.get_closest_marker("on_both"):
        metafunc.parametrize("location", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def location(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Location]:
    if getattr(request, "param", "sqlite") == "sqlite":
        yield tmp_path / "llamacord.sqlite3"
    else:
        with request.getfixturevalue("postgres").lent() as address:
            yield address


@pytest.fixture
async def world(location: Location) -> AsyncIterator[World]:
    async with open_world(location) as world:
        yield world
