"""`python -m engine inspect`: explains a model, what it needs here and what is wrong with it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from engine.advising.advice import Load, advise
from engine.advising.gpu_advice import GpuAdvice, advise_gpu
from engine.advising.inspection import Inspection, inspect
from engine.advising.measuring import measure_model, measure_shape, measured_layers, memory_bandwidth
from engine.advising.report import Measured, Report, as_json
from engine.commands import Subparsers
from engine.commands.inspect_tables import print_report
from engine.describing.architecture import Precision
from engine.machine.cuda_device import NoCudaError, find_device, free_bytes, has_driver
from engine.machine.machine import Resources, resources

_RUNS_AS_ANOTHER = "fp16"
_QUIET_LOAD = 0.3
"""Programs that want to compute, a core."""


def add_to(commands: Subparsers) -> None:
    """Add the command's arguments."""
    command = commands.add_parser("inspect", help="explain a model: what it is, needs and lacks")
    command.add_argument("path", type=Path, help="a file or folder of weights, or a converted model")
    command.add_argument(
        "--context", type=_at_least_one, default=4096, metavar="TOKENS", help="of a conversation; 4096"
    )
    command.add_argument(
        "--conversations", type=_at_least_one, default=8, metavar="N", help="answered at once; 8"
    )
    command.add_argument("--verify", action="store_true", help="read every byte: checksums, or all weights")
    command.add_argument(
        "--measure", action="store_true", help="measure how fast each precision runs here; a minute, or a few"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    command.set_defaults(act=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    load, machine = Load(arguments.conversations, arguments.context), resources()
    measured = Measured()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Reading", total=1.0)
        found = inspect(
            arguments.path,
            verify=arguments.verify,
            on_progress=lambda share: progress.update(task, completed=share),
        )
        if arguments.measure and not found.problems:
            busy = _other_load(machine)
            if busy is not None:
                found.notes.append(busy)
            measured = _measure(found, machine, load, progress)
    advice = None
    if found.description is not None:
        description = found.description
        advice = advise(description.config, machine, load, measured.speeds, description.blocks)
    report = Report(found, machine, advice, measured, _gpu_advice(found, load))
    if arguments.json:
        print(json.dumps(as_json(report), ensure_ascii=False, indent=1, default=str))
    else:
        print_report(report, Console())
    return 1 if report.problems else 0


def _gpu_advice(found: Inspection, load: Load) -> GpuAdvice | None:
    """Return advice on this machine's GPU, None without one; a note says why a driver's GPU is not used."""
    if found.description is None:
        return None
    try:
        device = find_device()
        free = free_bytes()
    except NoCudaError as error:
        if has_driver():
            found.notes.append(f"The GPU is not used: {error}.")
        return None
    if found.description.precision is Precision.FP32:
        found.notes.append("In fp32 it runs on the CPU alone: for the GPU convert it to fp16, int8 or int4.")
    config, blocks = found.description.config, found.description.blocks
    return advise_gpu(
        config, device, free, load, has_4_bits=blocks.has_4_bits, has_zero_points=blocks.has_zero_points
    )


def _measure(found: Inspection, machine: Resources, load: Load, progress: Progress) -> Measured:
    """Measure this machine, each precision in the model's shape, and the model itself if it is converted."""
    if found.description is None:
        return Measured()
    config, cores = found.description.config, machine.num_cores
    precisions = [precision for precision in Precision if precision != _RUNS_AS_ANOTHER]
    task = progress.add_task("Measuring the memory", total=len(precisions) + 2)
    bandwidth = memory_bandwidth(cores)
    speeds = {}
    for precision in precisions:
        progress.update(task, advance=1, description=f"Measuring {precision}")
        speeds[precision] = measure_shape(config, precision, num_threads=cores, load=load)
    progress.update(task, advance=1, description="Measuring the model")
    own = None
    if found.description.precision is not None:
        own = asyncio.run(measure_model(found.path, num_threads=cores, load=load))
    return Measured(speeds, own, bandwidth, measured_layers(config))


def _other_load(machine: Resources) -> str | None:
    """Return a sentence where other programs compute so much that what is measured would be too low."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < _QUIET_LOAD * machine.num_cores:
        return None
    return (
        f"Other programs were computing while this was measured (load {load:.1f} on {machine.num_cores} "
        "cores): on a quiet machine it is faster."
    )


def _at_least_one(written: str) -> int:
    number = int(written)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
