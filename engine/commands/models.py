"""`python -m engine models`: models worth having, and how each would do on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.advising.advice import figure
from engine.advising.catalogue import Here, on_this_machine, pick
from engine.advising.measuring import memory_bandwidth
from engine.commands import Subparsers
from engine.describing.footprint import size
from engine.machine.cuda_device import CudaDevice, NoCudaError, find_device
from engine.machine.machine import resources

_WIDEST = 1000
"""Columns; no table has as many."""


def add_to(commands: Subparsers) -> None:
    """Add the command's arguments."""
    command = commands.add_parser("models", help="list good models, and how they would run here")
    command.set_defaults(act=_models)


def _models(_arguments: argparse.Namespace) -> int:
    machine, device = resources(), _device()
    bandwidth = memory_bandwidth(machine.num_cores) if device is None else device.bandwidth
    found = on_this_machine(machine, bandwidth, device)
    best, console = pick(found), Console()
    memory = "GPU memory" if device is not None else "memory"
    if Console(width=_WIDEST).measure(table := _table(found, best, memory)).maximum <= console.width:
        console.print(table)
    else:
        console.print(_table(found, best, memory, is_narrow=True))
        console.print(_list(found), soft_wrap=True)
    place = device.describe() if device is not None else f"{size(machine.memory_bytes)} of memory"
    console.print(
        f"For this machine: {place}, which reads {bandwidth / 1e9:.0f} GB/s. Memory is for 4 bits and one "
        "conversation of 4096 tokens; speed is a rough figure for one answer.",
        soft_wrap=True,
        highlight=False,
    )
    if best is None:
        console.print("None of them fits here; the default model runs anywhere.", soft_wrap=True)
    else:
        console.print(
            Text(f"← {best.entry.name} suits this machine. Add this to .env:\nMODEL={best.entry.address}"),
            soft_wrap=True,
        )
    console.print(
        "For any other model: python -m engine pull hf:OWNER/NAME:Q4_K_M, see docs/models.md.", soft_wrap=True
    )
    return 0


def _device() -> CudaDevice | None:
    try:
        return find_device()
    except NoCudaError:
        return None


def _list(found: Sequence[Here]) -> Text:
    """Return what a narrow table has no room for."""
    lines = Text()
    for one in found:
        lines.append(one.entry.name, "bold")
        lines.append(f" ({one.entry.licence}): {one.entry.good_at}\n")
        lines.append(f"    {one.entry.address}\n", "dim")
    return lines


def _table(found: Sequence[Here], best: Here | None, memory: str, *, is_narrow: bool = False) -> Table:
    table = Table(title="Models", title_justify="left", show_lines=False)
    table.add_column("model" if is_narrow else "model, and its value for MODEL")
    if not is_narrow:
        table.add_column("licence")
    for column in ("on disk", memory, "fits", "tokens/s"):
        table.add_column(column, justify="right")
    if not is_narrow:
        table.add_column("good at")
    for one in found:
        name = Text(f"{one.entry.name}{' ←' if one is best else ''}", "bold" if one is best else "")
        speed = "" if one.speed is None else figure(one.speed, 2)
        figures = (size(one.disk_bytes), size(one.memory_bytes), str(one.fit), speed)
        if is_narrow:
            table.add_row(name, *figures)
        else:
            name.append(f"\n{one.entry.address}", "dim")
            table.add_row(name, one.entry.licence, *figures, one.entry.good_at)
    return table
