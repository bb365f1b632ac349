"""Fixtures that several files of engine tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.worker_bench import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def started(bench: Bench) -> Bench:
    bench.start()
    return bench
