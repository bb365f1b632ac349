"""Cores and memory, as this machine tells them and where it does not."""

from __future__ import annotations

import os
import types
from pathlib import Path

import pytest

from engine.machine import machine
from engine.machine.cgroups import Limits


def test_this_machine_has_cores_and_memory() -> None:
    assert 1 <= machine.num_physical_cores() <= (os.cpu_count() or 1)
    assert 2**28 < machine.memory_bytes() < 2**50


def test_memory_is_what_the_kernel_says() -> None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("there is no /proc/meminfo")
    assert machine.memory_bytes() == int(meminfo.read_text().split()[1]) * 1024


TOPOLOGIES: dict[str, tuple[set[int], dict[int, str], int]] = {
    "no threads": ({0, 1, 2, 3}, {0: "0", 1: "1", 2: "2", 3: "3"}, 4),
    "two threads a core": ({0, 1, 2, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, 2),
    "performance and efficiency": ({0, 1, 2, 3}, {0: "0-1", 1: "0-1", 2: "2", 3: "3"}, 3),
    "half of the threads allowed": ({0, 1}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, 2),
    "one core allowed": ({1, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, 1),
}


@pytest.mark.parametrize(("allowed", "siblings", "expected"), TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_threads_of_one_core_count_once(
    monkeypatch: pytest.MonkeyPatch, allowed: set[int], siblings: dict[int, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: allowed, raising=False)
    monkeypatch.setattr(machine, "_siblings", siblings.__getitem__)
    assert machine.num_physical_cores() == expected


def test_without_a_topology_every_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {900001, 900002, 900003}, raising=False)
    assert machine.num_physical_cores() == 3


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.num_physical_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.num_physical_cores() == 1


@pytest.mark.parametrize("error", [OSError(), ValueError("unrecognized configuration name")])
def test_unknown_memory_is_taken_as_8_gib(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(_name: str) -> int:
        raise error

    monkeypatch.setattr(os, "sysconf", refuse)
    assert machine.memory_bytes() == 8 * 2**30
    monkeypatch.delattr(os, "sysconf")
    assert machine.memory_bytes() == 8 * 2**30


def test_windows_tells_how_much_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(pointer: object) -> int:
        filled = pointer._obj  # type: ignore[attr-defined]
        assert filled.length == 64  # what Windows wants to be told first
        filled.total, filled.available = 16 * 2**30, 9 * 2**30
        return 1

    kernel32 = types.SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr("ctypes.windll", types.SimpleNamespace(kernel32=kernel32), raising=False)
    monkeypatch.setattr(machine, "_mem_available", lambda: None)
    monkeypatch.setattr(machine, "read_limits", Limits)
    monkeypatch.delattr(os, "sysconf")
    assert machine.memory_bytes() == 16 * 2**30
    assert machine.free_memory_bytes() == 9 * 2**30
