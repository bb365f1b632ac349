"""The limits of containers, read from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.machine import machine
from engine.machine.cgroups import Limits, read_limits

GIB = 2**30
UNLIMITED_V1 = str(2**63 - 4096)


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files below `root`, as /proc and /sys would show them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


V2 = {
    "proc/self/cgroup": "0::/system.slice/bot.service",
    "sys/fs/cgroup/system.slice/bot.service/memory.max": str(4 * GIB),
    "sys/fs/cgroup/system.slice/bot.service/memory.current": str(3 * GIB),
    "sys/fs/cgroup/system.slice/bot.service/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}",
    "sys/fs/cgroup/system.slice/bot.service/cpu.max": "150000 100000",
}
V1 = {
    "proc/self/cgroup": "5:cpuacct,cpu:/docker/a\n4:memory:/docker/a\n1:name=systemd:/docker/a",
    "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": str(2 * GIB),
    "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": str(GIB),
    "sys/fs/cgroup/memory/docker/a/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 2}",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
    "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "300000",
    "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000",
}
GROUP = "sys/fs/cgroup/system.slice"
CASES: dict[str, tuple[dict[str, str], Limits]] = {
    "version 2": (V2, Limits(4 * GIB, 2 * GIB, 1.5)),
    "version 2, a tighter group around it": (
        {
            **V2,
            f"{GROUP}/memory.max": str(GIB),
            f"{GROUP}/memory.current": "0",
            f"{GROUP}/cpu.max": "50000 100000",
        },
        Limits(GIB, GIB, 0.5),
    ),
    "version 2, no limits": (
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": "max",
            "sys/fs/cgroup/cpu.max": "max 100000",
        },
        Limits(),
    ),
    "version 2 in a container, which sees its own group at the top": (
        {"proc/self/cgroup": "0::/../../pod", "sys/fs/cgroup/memory.max": str(GIB)},
        Limits(GIB, GIB),
    ),
    "version 2, the named path is not mounted": (
        {
            "proc/self/cgroup": "0::/pod/c",
            "sys/fs/cgroup/memory.max": str(GIB),
            "sys/fs/cgroup/memory.current": "5",
        },
        Limits(GIB, GIB - 5, None),
    ),
    "version 2, more is used than allowed": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "10", "sys/fs/cgroup/memory.current": "20"},
        Limits(10, 0, None),
    ),
    "version 1": (V1, Limits(2 * GIB, GIB + GIB // 2, 3.0)),
    "version 1, no quota": (
        {**V1, "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "-1"},
        Limits(2 * GIB, GIB + GIB // 2),
    ),
    "nothing": ({}, Limits()),
    "nonsense": (
        {
            "proc/self/cgroup": "::::\nx\n0::/",
            "sys/fs/cgroup/memory.max": "a lot",
            "sys/fs/cgroup/cpu.max": "",
        },
        Limits(),
    ),
}


@pytest.mark.parametrize(("files", "expected"), CASES.values(), ids=CASES)
def test_limits_are_read(tmp_path: Path, files: dict[str, str], expected: Limits) -> None:
    assert read_limits(write(tmp_path, files)) == expected


def test_the_machine_is_no_larger_than_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_limits", lambda: Limits(2**20, 2**10, 0.5))
    assert machine.memory_bytes() == 2**20
    assert machine.free_memory_bytes() == 2**10
    assert (machine.num_processors(), machine.num_physical_cores()) == (1, 1)


def test_generous_limits_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_limits", Limits)
    plain = (machine.memory_bytes(), machine.num_processors(), machine.num_physical_cores())
    monkeypatch.setattr(machine, "read_limits", lambda: Limits(2**59, 2**59, 1e6))
    assert (machine.memory_bytes(), machine.num_processors(), machine.num_physical_cores()) == plain
