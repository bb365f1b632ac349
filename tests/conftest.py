"""What all tests share: those marked `gpu` are left out where no NVIDIA GPU can be used."""

from __future__ import annotations

import pytest

from engine.machine.cuda_device import NoCudaError, find_device


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
