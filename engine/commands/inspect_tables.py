"""What `inspect` prints for a person: tables and sentences. Computes nothing of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.advising.advice import Advice, Speed
from engine.advising.gpu_advice import GpuAdvice
from engine.advising.inspection import Description
from engine.advising.report import Report
from engine.describing.architecture import DecoderConfig
from engine.describing.footprint import size
from engine.text.guidance import preset_name

_SHOWN_CHARACTERS = 70
"""Of a text that comes from a file."""


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
    for index, group in enumerate(description.tensors):
        yield "" if index else "Tensors", f"{group.count} {group.kind}, {size(group.num_bytes)}"
    if description.tokenizer is not None:
        yield "Tokenizer", f"{description.tokenizer.kind}, {description.num_tokens} tokens"
    yield "Chat format", description.chat.format or "none: a base model"
    if description.chat.format is not None:
        yield "System prompt", _system_prompt(description.chat.default_system_prompt)
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


def _scaling(config: DecoderConfig) -> str:
    return "" if config.rope_factor == 1 else f", positions divided by {config.rope_factor:g}"


def _system_prompt(text: str) -> str:
    if preset_name(text) == "safe":
        return "Meta's safety guidance (the preset safe)"
    shown = " ".join(text.split())
    return (shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[: _SHOWN_CHARACTERS - 1]}…") or "none"


def _memory_table(advice: Advice) -> Table:
    load = advice.load
    title = f"Memory for {load.num_conversations} conversations of up to {load.num_tokens} tokens"
    table = _table(title, ("", "on disk", "weights", "KV", "in total", "fits"))
    for option in advice.candidates:
        memory = option.memory
        sizes = (option.disk_bytes, memory.weights, memory.kv, memory.total)
        name = f"{option.precision} ←" if option is advice.chosen else str(option.precision)
        table.add_row(name, *(size(number) for number in sizes), str(option.fit))
    return table


def _gpu_table(advice: GpuAdvice) -> Table:
    load = advice.load
    expected = f"{load.num_conversations} conversations of up to {load.num_tokens} tokens"
    title = f"{advice.device.describe()}: {expected}"
    columns = ("", "weights", "KV of each", "at once", "tokens/s alone", "together", "fits")
    table = _table(title, columns)
    for option in advice.candidates:
        name = f"{option.precision} ←" if option is advice.chosen else str(option.precision)
        speeds = (f"{speed:.3g}" for speed in (option.single, option.together))
        table.add_row(
            name, size(option.weights), size(advice.kv), str(option.num_fitting), *speeds, str(option.fit)
        )
    return table


def _speed_table(report: Report, advice: Advice, config: DecoderConfig) -> Table:
    """Tokens a second; the floor is what the memory's bandwidth allows for one conversation."""
    load, measured = advice.load, report.measured
    title = (
        f"Tokens a second, measured on {measured.num_layers} of {config.num_layers} layers of the true shape"
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
    return [name, f"{speed.single:.3g}", share, f"{speed.together:.3g}", f"{speed.prefill:.3g}"]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _printable(text: str) -> str:
    """Return `text`, which may come from a file, without what could command a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
