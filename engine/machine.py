"""What this machine offers: cores and memory. Linux details with portable fallbacks."""

from __future__ import annotations

import os
from pathlib import Path


def num_physical_cores() -> int:
    """Return the physical cores that this process may use; hardware threads of one core count once."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    siblings = {_siblings(cpu) for cpu in cpus}
    return max(1, len(siblings))


def memory_bytes() -> int:
    """Return the machine's physical memory, 8 GiB where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 * 2**30


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)
