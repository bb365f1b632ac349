"""`python -m engine inspect`: explains a model, what it needs here and what is wrong with it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from engine import kernels
from engine.advising.advice import Advice, Load, Speed, advise, figure
from engine.advising.gpu_advice import GpuAdvice, advise_gpu
from engine.advising.inspection import Description, Inspection, inspect
from engine.advising.measuring import measure_model, measure_shape, measured_layers, memory_bandwidth
from engine.advising.report import Measured, Report, as_json
from engine.commands import Subparsers, add_chat_template
from engine.convert.converter import refuse_missing
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.footprint import size
from engine.describing.layers import Rotation
from engine.describing.manifest import ChatSpec
from engine.errors import ModelError
from engine.machine.cuda_device import NoCudaError, find_device, free_bytes, has_driver
from engine.machine.machine import Resources, resources
from engine.opening import open_draft, open_folder
from engine.text.chat_choice import named_chat
from engine.types import preset_name

_RUNS_AS_ANOTHER = "fp16"
_QUIET_LOAD = 0.3
"""Programs that want to compute, a core."""
_SHOWN_CHARACTERS = 70
"""Of a text that comes from a file."""


def add_to(commands: Subparsers) -> None:
    """Add the command's arguments."""
    command = commands.add_parser("inspect", help="explain a model: what it is, what it needs, what is wrong")
    command.add_argument("path", type=Path, help="a file or folder of weights, or a converted model")
    command.add_argument(
        "--context",
        type=_at_least_one,
        default=4096,
        metavar="TOKENS",
        help="length of a conversation; default: 4096",
    )
    command.add_argument(
        "--conversations", type=_at_least_one, default=8, metavar="N", help="how many at once; default: 8"
    )
    command.add_argument(
        "--draft", type=Path, metavar="FOLDER", help="check whether this model can draft for it"
    )
    add_chat_template(command)
    command.add_argument("--verify", action="store_true", help="read every byte: checksums, or all weights")
    command.add_argument(
        "--measure",
        action="store_true",
        help="measure how fast each precision runs here; takes a few minutes",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    command.set_defaults(act=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    if not arguments.json:  # of nothing there is no table
        refuse_missing(arguments.path)
    load, machine = Load(arguments.conversations, arguments.context), resources()
    measured = Measured()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Reading", total=1.0)
        found = inspect(
            arguments.path,
            chat=named_chat(arguments.chat_template),
            verify=arguments.verify,
            on_progress=lambda share: progress.update(task, completed=share),
        )
        if arguments.draft is not None:
            _add_draft(found, arguments.draft)
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


def _add_draft(found: Inspection, folder: Path) -> None:
    """Say whether the model in `folder` can draft for this one, or what is wrong with it."""
    try:
        draft = open_draft(folder, open_folder(found.path))
    except ModelError as error:
        found.problems.append(str(error))
        return
    found.notes.append(
        f"{draft.name} can draft for it: DRAFT_MODEL={folder} takes {size(draft.running_bytes)} of memory "
        "and the KV of one conversation. It helps on a CPU while one answer is written at a time."
    )


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
        found.notes.append("In fp32 it only runs on the CPU. For the GPU, convert it to fp16, int8 or int4.")
    config, blocks = found.description.config, found.description.blocks
    return advise_gpu(config, device, free, load, has_4_bits=blocks.has_4_bits, held=blocks.held)


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
        f"Other programs were busy during the measurement (load {load:.1f} on {machine.num_cores} cores). "
        "On a quiet machine it is faster."
    )


def _at_least_one(written: str) -> int:
    number = int(written)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def print_report(report: Report, console: Console) -> None:
    """Print the report as tables and sentences."""
    found, description = report.found, report.found.description
    table = Table(title=Text(_printable(str(found.path))), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts(report):
        table.add_row(name, Text(_printable(value)))
    console.print(table)
    if description is not None and report.advice is not None:
        console.print(_memory_table(report.advice))
        if report.measured.speeds:
            console.print(_speed_table(report, report.advice, description.config))
    for sentence in report.advice.sentences if report.advice and report.advice.chosen else ():
        console.print(Text(f"• {sentence}"), soft_wrap=True)
    if report.gpu is not None:
        console.print(_gpu_table(report.gpu))
        for sentence in report.gpu.sentences:
            console.print(Text(f"• {sentence}"), soft_wrap=True)
    for prediction in report.predictions():
        console.print(Text(f"• {prediction}"), soft_wrap=True)
    for note in found.notes:
        console.print(Text(f"• {note}", "yellow"), soft_wrap=True)
    for problem in report.problems:
        console.print(Text(f"✘ {_printable(problem)}", "red"), soft_wrap=True)
    if not report.problems:
        console.print(Text("✔ Nothing is wrong with it.", "green"))


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    found, machine = report.found, report.machine
    yield "What it is", found.kind
    yield "On disk", size(found.num_bytes)
    if found.description is not None:
        yield from _description_facts(found.description)
    yield "This machine", f"{machine.num_cores} cores, {size(machine.memory_bytes)} of memory"
    yield "Processor", machine.processor.describe()
    yield "Products", kernels.describe()
    if report.measured.bandwidth is not None:
        yield "Memory reads", f"{report.measured.bandwidth / 1e9:.1f} GB/s, measured"


def _description_facts(description: Description) -> Iterator[tuple[str, str]]:
    config, origin = description.config, description.origin
    yield "Name", description.name
    if description.precision is not None:
        yield "Precision", str(description.precision)
    yield "Parameters", f"{config.num_parameters / 1e6:,.1f} M"
    yield "Shape", _shape(config)
    yield "Context", f"{config.context_length} tokens, rope theta {config.rope_theta:g}{_scaling(config)}"
    if config.layers:
        yield "Layers", _layers(config)
    for index, group in enumerate(description.tensors):
        yield "" if index else "Tensors", f"{group.count} {group.kind}, {size(group.num_bytes)}"
    if description.tokenizer is not None:
        yield "Tokenizer", f"{description.tokenizer.kind}, {description.num_tokens} tokens"
    yield "Chat format", description.chat.format or "none: a base model"
    if description.chat.format is not None:
        yield "System prompt", _system_prompt(description.chat.default_system_prompt)
    if description.chat.reasoning:
        yield "Thinking", _thinking(description.chat)
    if description.sampling:
        yield "Sampling", ", ".join(f"{name} {value:g}" for name, value in description.sampling.items())
    known = {key: value for key, value in origin.items() if key != "license"}
    yield "Origin", ", ".join(f"{key} {value}" for key, value in known.items()) or "not recorded"
    yield "Licence", origin.get("license", "not recorded")


def _shape(config: DecoderConfig) -> str:
    heads = f"{config.num_heads} heads of {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f" over {config.num_kv_heads} of keys and values"
    tied = "tied" if config.tied_embeddings else "separate"
    return (
        f"{config.num_layers} layers, hidden {config.hidden_size}, inner {config.intermediate_size}, "
        f"{heads}, vocabulary {config.vocab_size}, head {tied}"
    )


def _layers(config: DecoderConfig) -> str:
    """Say which layers see only the newest tokens, and which do not know their order."""
    said = []
    windows = [layer.window for layer in config.layers if layer.window]
    if windows:
        said.append(f"{len(windows)} of {config.num_layers} see only the newest {max(windows):,} tokens")
    unordered = sum(layer.rotation is Rotation.NONE for layer in config.layers)
    if unordered:
        said.append(f"{unordered} ignore the order of tokens")
    return ", ".join(said) or "all alike"


def _scaling(config: DecoderConfig) -> str:
    scaling, said = config.rope_scaling, ""
    if config.rope_factor != 1:
        said += f", positions divided by {config.rope_factor:g}"
    if scaling.divisors:
        said += f", frequencies divided by up to {max(scaling.divisors):.3g}"
    if scaling.original_context:
        said += f", stretched beyond {scaling.original_context:,} tokens"
    return said


def _thinking(chat: ChatSpec) -> str:
    opening, closing = chat.reasoning
    switch = f", until {chat.thinking_switch} is false" if chat.thinking_switch else ""
    return f"between {opening} and {closing}{switch}"


def _system_prompt(text: str) -> str:
    if preset_name(text) == "safe":
        return "Meta's safety guidance (the preset safe)"
    shown = " ".join(text.split())
    return (shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[: _SHOWN_CHARACTERS - 1]}…") or "none"


def _memory_table(advice: Advice) -> Table:
    load = advice.load
    title = f"Memory for {load.num_conversations} conversations of up to {load.num_tokens} tokens"
    table = _table(title, ("", "bits", "on disk", "weights", "KV", "in total", "fits"))
    for option in advice.candidates:
        memory = option.memory
        sizes = (option.disk_bytes, memory.weights, memory.kv, memory.total)
        name = f"{option.precision} ←" if option is advice.chosen else str(option.precision)
        bits = ", ".join(
            f"{bits} ({share:.0%})" if share < 1 else f"{bits}" for bits, share in option.bits.items()
        )
        table.add_row(name, bits, *(size(number) for number in sizes), str(option.fit))
    return table


def _gpu_table(advice: GpuAdvice) -> Table:
    load = advice.load
    expected = f"{load.num_conversations} conversations of up to {load.num_tokens} tokens"
    title = f"{advice.device.describe()}: {expected}"
    columns = ("", "weights", "KV of each", "at once", "tokens/s alone", "together", "fits")
    table = _table(title, columns)
    for option in advice.candidates:
        name = f"{option.precision} ←" if option is advice.chosen else str(option.precision)
        speeds = (figure(speed) for speed in (option.single, option.together))
        table.add_row(
            name, size(option.weights), size(advice.kv), str(option.num_fitting), *speeds, str(option.fit)
        )
    return table


def _speed_table(report: Report, advice: Advice, config: DecoderConfig) -> Table:
    """Tokens a second; the floor is what the memory's bandwidth allows for one conversation."""
    load, measured = advice.load, report.measured
    title = (
        f"Tokens a second, measured on {measured.num_layers} of {config.num_layers} layers of the real shape"
    )
    table = _table(title, ("", "one alone", "of the floor", f"{load.num_conversations} together", "prompt"))
    for option in advice.candidates:
        if option.speed is None:
            table.add_row(str(option.precision), "as fp32")
        else:
            table.add_row(*_speed_cells(str(option.precision), option.speed, report.floor(option.precision)))
    precision = report.found.description and report.found.description.precision
    if measured.own is not None and precision:
        table.add_row(*_speed_cells("this model, whole", measured.own, report.floor(precision)))
    return table


def _speed_cells(name: str, speed: Speed, floor: float | None) -> list[str]:
    share = f"{speed.single / floor:.0%}" if floor else ""
    return [name, figure(speed.single), share, figure(speed.together), figure(speed.prefill)]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _printable(text: str) -> str:
    """Return `text`, which may come from a file, without what could command a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
