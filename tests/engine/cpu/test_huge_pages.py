"""Memory moves into huge pages without changing, and without growing."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from engine.cpu import kv_buffers as huge_pages
from engine.cpu.kv_buffers import use_huge_pages

SIZE = 64 * 2**20


def huge_bytes() -> int:
    """Return how much of this process's memory lies in huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages:"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not huge_pages._SIZE_FILE.exists(), reason="This kernel has no huge pages.")
def test_used_memory_moves_unchanged_and_unused_memory_stays_unused() -> None:
    used, unused = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE), mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE)
    for memory in (used, unused):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    values = np.frombuffer(used, np.uint32)
    values[:] = np.random.default_rng(0).integers(0, 2**32, len(values), np.uint32)
    expected, before, resident = values.copy(), huge_bytes(), resident_bytes()
    moved = use_huge_pages(deadline_s=60.0)
    if moved == 0:
        pytest.skip("This kernel cannot move memory on request.")
    assert moved >= SIZE - 2 * 2**21
    assert huge_bytes() - before >= SIZE - 2 * 2**21
    assert resident_bytes() - resident < SIZE / 4
    assert np.array_equal(values, expected)


def test_no_time_means_nothing_is_moved() -> None:
    assert use_huge_pages(deadline_s=-1.0) == 0


@pytest.mark.parametrize("hidden", ["_SIZE_FILE", "_PAGEMAP", "_MAPS"])
def test_a_system_that_hides_what_is_needed_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: str
) -> None:
    monkeypatch.setattr(huge_pages, hidden, tmp_path / "missing")
    assert use_huge_pages() == 0
