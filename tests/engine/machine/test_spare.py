"""Whether the machine has time to spare, on files like those of Linux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.machine.machine import MAX_OTHERS, SpareTime, spare_time

PER_S = os.sysconf("SC_CLK_TCK")


class Machine:
    """What the files say."""

    def __init__(self, folder: Path) -> None:
        self.supplies, self.stat = folder / "supplies", folder / "stat"
        self.supplies.mkdir()
        self.busy_s = self.idle_s = self.own_s = 0.0
        self.write()
        self.spare = SpareTime(self.supplies, self.stat, lambda: self.own_s)

    def pass_by(self, *, others_s: float, own_s: float, idle_s: float) -> None:
        """Let time go by."""
        self.own_s += own_s
        self.busy_s += others_s + own_s
        self.idle_s += idle_s
        self.write()

    def write(self) -> None:
        busy, idle = int(self.busy_s * PER_S), int(self.idle_s * PER_S)
        self.stat.write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")

    def plug(self, name: str, **files: str) -> None:
        """Add a power supply."""
        (self.supplies / name).mkdir(exist_ok=True)
        for file, text in files.items():
            (self.supplies / name / file).write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_there_is_time_where_nothing_says_otherwise(machine: Machine, tmp_path: Path) -> None:
    assert machine.spare.is_there()
    assert SpareTime(tmp_path / "none", tmp_path / "none").is_there()


def test_there_is_none_while_others_use_the_processors(machine: Machine) -> None:
    machine.pass_by(others_s=6, own_s=0, idle_s=4)
    assert not machine.spare.is_there()
    machine.pass_by(others_s=1, own_s=8, idle_s=1)
    assert machine.spare.is_there(), "what we use ourselves does not count"
    machine.pass_by(others_s=10 * MAX_OTHERS - 1, own_s=0, idle_s=10 * (1 - MAX_OTHERS) + 1)
    assert machine.spare.is_there()
    assert machine.spare.is_there(), "no time has passed"


def test_there_is_none_on_battery(machine: Machine) -> None:
    machine.plug("AC", type="Mains", online="1")
    machine.plug("BAT0", type="Battery", status="Charging")
    assert machine.spare.is_there()
    machine.plug("BAT0", status="Discharging")
    assert not machine.spare.is_there()
    machine.plug("BAT0", scope="Device")
    assert machine.spare.is_there(), "that is the battery of a mouse"


def test_the_operator_decides(machine: Machine) -> None:
    always = spare_time("on")
    assert always is not None
    assert always()
    assert spare_time("off") is None
    assert spare_time("auto") is not None
