"""What this machine offers: cores, memory as far as a container's limits allow, and time to spare.

There is time while it is not on battery and others do not need its processors: known on Linux only, from /sys
and /proc, elsewhere there always is. Portable fallbacks.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.machine.cgroups import read_limits

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
MAX_OTHERS = 0.5
"""The share of all processors that others may use."""
_SUPPLIES, _STAT = Path("/sys/class/power_supply"), Path("/proc/stat")


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
        physical = _windows_memory()[0] or 8 * 2**30
    limit = read_limits().memory_bytes
    return physical if limit is None else min(physical, limit)


def free_memory_bytes() -> int | None:
    """Return the bytes that can be had without swapping, or None where the system does not say."""
    free = [_mem_available() or _windows_memory()[1], read_limits().free_memory_bytes]
    return min((number for number in free if number is not None), default=None)


def resources() -> Resources:
    """Return all of it at once."""
    return Resources(memory_bytes(), free_memory_bytes(), num_physical_cores(), read_processor())


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


def spare_time(choice: str) -> Callable[[], bool] | None:
    """Return what tells whether there is time to spare: always, never (None), or as the machine says."""
    return {"on": lambda: True, "off": None}.get(choice, SpareTime().is_there)


class SpareTime:
    """Looks at the machine. own_s: the processor time that this process took so far, in seconds."""

    def __init__(
        self, supplies: Path = _SUPPLIES, stat: Path = _STAT, own_s: Callable[[], float] = lambda: _own_s()
    ) -> None:
        self._supplies = supplies
        self._stat = stat
        self._own_s = own_s
        self._last = self._read()

    def is_there(self) -> bool:
        """Tell whether there is time to spare, by what others did since this was last asked."""
        return not self._is_on_battery() and self._others() <= MAX_OTHERS

    def _is_on_battery(self) -> bool:
        """Tell whether the machine has a battery of its own that is being drained."""
        for supply in self._supplies.glob("*"):
            is_battery = _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device"
            if is_battery and _text(supply / "status") == "Discharging":
                return True
        return False

    def _others(self) -> float:
        """Return the share of all processors that others used since the last look."""
        (total, busy, own), self._last = self._last, self._read()
        passed = self._last[0] - total
        return 0.0 if passed <= 0 else (self._last[1] - busy - (self._last[2] - own)) / passed

    def _read(self) -> tuple[float, float, float]:
        """Return the time of all processors, the part in which they had to do, and our own, in seconds."""
        first, _, _ = _text(self._stat).partition("\n")
        ticks = [
            int(number) for number in first.split()[1:9]
        ]  # user nice system idle iowait irq softirq steal
        if len(ticks) < 8:
            return 0.0, 0.0, 0.0
        per_s = os.sysconf("SC_CLK_TCK")
        return sum(ticks) / per_s, (sum(ticks) - ticks[3] - ticks[4]) / per_s, self._own_s()


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


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "available", "total_page", "available_page")),
        *((name, ctypes.c_uint64) for name in ("total_virtual", "available_virtual", "available_extended")),
    )


def _windows_memory() -> tuple[int | None, int | None]:
    """Return what Windows says of all memory and of what is free; None, None elsewhere."""
    library = getattr(ctypes, "windll", None)
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if library is None or not library.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return int(status.total), int(status.available)


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _first(names: dict[str, str], flags: frozenset[str]) -> str | None:
    return next((name for flag, name in names.items() if flag in flags), None)


def _own_s() -> float:
    times = os.times()
    return times.user + times.system


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
