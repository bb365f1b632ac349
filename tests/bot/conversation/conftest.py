"""Tests of the service wait in virtual time, but for those with an engine whose thread takes real time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import aiosqlite
import pytest

from tests.virtual_time import VirtualLoop, at_work

WITH_AN_ENGINE = ("test_idle_on_model", "test_on_engine")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return what makes a test's loop."""
    return {"loop": asyncio.SelectorEventLoop if item.path.stem in WITH_AN_ENGINE else VirtualLoop}


@pytest.fixture(autouse=True)
def time_waits_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiosqlite.Connection, "_execute", at_work(aiosqlite.Connection._execute))
