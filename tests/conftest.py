"""What all tests share: those marked `gpu` are left out where no GPU can be used, else one runs at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from engine.machine.cuda_device import NoCudaError, find_device
from engine.machine.machine import num_processors
from tests.postgres_server import postgres

__all__ = ["postgres"]

MAX_PROCESSES = 8

settings.register_profile("same", derandomize=True)
if os.environ.get("LLAMACORD_SAME_EXAMPLES"):
    settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU, with the reason why there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu") is not None]
    if not marked:
        return
    try:
        find_device()
    except NoCudaError as error:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {error}"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes share the tests: one more than processors, since some tests wait."""
    return min(num_processors() + 1, MAX_PROCESSES)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let one process at a time use the GPU: several run tests, and some of these measure its memory."""
    if item.get_closest_marker("gpu") is None:
        return (yield)
    import fcntl

    with (Path(tempfile.gettempdir()) / "llamacord-gpu-tests.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return (yield)
