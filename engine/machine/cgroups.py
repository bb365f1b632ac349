"""The limits that a container sets to its processes: Linux control groups, version 1 and 2. Only reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60
"""Version 1 writes a number of this size where there is no limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What this process may use; None where nothing limits it."""

    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    """What is left of it: memory that only caches files counts as free."""
    num_cpus: float | None = None


def read_limits(root: Path = Path("/")) -> Limits:
    """Return the limits of this process's group and of all groups around it, the smallest of each kind."""
    memory = [entry for group in _groups(root, "memory") if (entry := _memory(group)) is not None]
    cpus = [number for group in _groups(root, "cpu") if (number := _cpus(group)) is not None]
    return Limits(
        min((limit for limit, _ in memory), default=None),
        min((free for _, free in memory), default=None),
        min(cpus, default=None),
    )


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Give the folders of this process's groups for a controller, the innermost first.

    Inside a container the path that the kernel names may not be there: then what is mounted is the group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            top = mounts / controller
        elif number == "0" and not names:
            top = mounts
        else:
            continue
        group = Path("" if ".." in path else path.lstrip("/"))
        yield from (top / part for part in (group, *group.parents))


def _memory(group: Path) -> tuple[int, int] | None:
    """Return limit and free bytes of one group, None where it has no limit."""
    for limit_file, usage_file, cache_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _number(group / limit_file)
        if limit is not None and limit < _UNLIMITED:
            used = (_number(group / usage_file) or 0) - _stat(group / "memory.stat", cache_key)
            return limit, max(0, limit - max(0, used))
    return None


def _cpus(group: Path) -> float | None:
    """Return how many processors' time one group may use, None where it has no limit."""
    quota, period = _numbers(group / "cpu.max", 2)
    if quota is None:
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period


def _stat(path: Path, key: str) -> int:
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdecimal():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    return _numbers(path, 1)[0]


def _numbers(path: Path, count: int) -> list[int | None]:
    """Return the numbers of a file with one line; None for each that is missing or a word such as `max`."""
    words = _text(path).split()[:count]
    found = [int(word) if word.removeprefix("-").isdecimal() else None for word in words]
    return [*found, *[None] * (count - len(found))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
