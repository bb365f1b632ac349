"""What this machine offers: cores and memory, as far as a container's limits allow. Portable fallbacks."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from engine.cgroups import read_limits
from engine.processor import Processor, read_processor


@dataclass(frozen=True, slots=True)
class Resources:
    """What the machine offers. `free_bytes` is None where it cannot be told."""

    memory_bytes: int
    free_bytes: int | None
    num_cores: int
    processor: Processor


def num_processors() -> int:
    """Return the hardware threads that this process may use at once."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _within_quota(count)


def num_physical_cores() -> int:
    """Return the physical cores that this process may use; hardware threads of one core count once."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    siblings = {_siblings(cpu) for cpu in cpus}
    return _within_quota(max(1, len(siblings)))


def memory_bytes() -> int:
    """Return the memory that this process may use at most, 8 GiB where it cannot be told."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        physical = 8 * 2**30
    limit = read_limits().memory_bytes
    return physical if limit is None else min(physical, limit)


def free_memory_bytes() -> int | None:
    """Return the bytes that can be had without swapping, or None where the system does not say."""
    free = [_mem_available(), read_limits().free_memory_bytes]
    return min((number for number in free if number is not None), default=None)


def resources() -> Resources:
    """Return all of it at once."""
    return Resources(memory_bytes(), free_memory_bytes(), num_physical_cores(), read_processor())


def _within_quota(count: int) -> int:
    """More threads than a container may run at once would only wait for each other."""
    quota = read_limits().num_cpus
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _mem_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)
