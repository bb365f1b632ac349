"""Whether the machine has time to spare: it is not on battery, and others do not need its processors.

Known on Linux only, from /sys and /proc; elsewhere there is always time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

MAX_OTHERS = 0.5
"""The share of all processors that others may use."""
_SUPPLIES, _STAT = Path("/sys/class/power_supply"), Path("/proc/stat")


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


def _own_s() -> float:
    times = os.times()
    return times.user + times.system


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
