"""What this machine offers: cores and memory, as far as a container's limits allow. Portable fallbacks."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from engine.machine.cgroups import read_limits


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


_INT8 = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "i8mm": "Arm I8MM",
    "asimddp": "Arm dot product",
}
"""Instructions that multiply 8-bit numbers and add them up, best first, by the kernel's flag."""
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "Arm SVE", "asimd": "Arm NEON"}
_HALF = {"avx512_fp16": "AVX-512 FP16", "amx_fp16": "AMX FP16", "asimdhp": "Arm half precision"}


@dataclass(frozen=True, slots=True)
class Processor:
    """`flags` are the kernel's names of its features; none where the system does not tell."""

    name: str
    flags: frozenset[str] = frozenset()

    @property
    def vectors(self) -> str | None:
        """Return the widest vector instructions."""
        return _first(_VECTORS, self.flags)

    @property
    def int8(self) -> str | None:
        """Return the best instructions for 8-bit weights, None without any of their own."""
        return _first(_INT8, self.flags)

    @property
    def half(self) -> str | None:
        """Return the instructions that compute in half precision, None where it must be widened."""
        return _first(_HALF, self.flags)

    def describe(self) -> str:
        """Return name and abilities on one line."""
        if not self.flags:
            return f"{self.name} (its instruction sets cannot be told here)"
        int8 = self.int8 or "no 8-bit dot product"
        return f"{self.name}: {self.vectors or 'no wide vectors'}, {int8}, {self.half or 'no native fp16'}"


def read_processor(root: Path = Path("/")) -> Processor:
    """Describe the processor that this process runs on."""
    fields: dict[str, str] = {}
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown processor"
    return Processor(name, frozenset((fields.get("flags") or fields.get("Features") or "").split()))


def _first(names: dict[str, str], flags: frozenset[str]) -> str | None:
    return next((name for flag, name in names.items() if flag in flags), None)
