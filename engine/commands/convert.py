"""`python -m engine convert`: turns somebody's weights into a model folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from engine.advising.advice import bits_sentence
from engine.commands import Subparsers, add_chat_template
from engine.convert.converter import convert, open_source
from engine.convert.source import ModelSource
from engine.convert.weights import has_4_bits, held_by
from engine.describing.architecture import Precision
from engine.describing.footprint import bit_shares, size
from engine.text.chat_choice import named_chat


def add_to(commands: Subparsers) -> None:
    """Add the command's arguments."""
    command = commands.add_parser("convert", help="convert weights into a model folder")
    command.add_argument(
        "source", type=Path, help="a GGUF file, a Hugging Face folder or a released Llama-2-Onnx folder"
    )
    command.add_argument("destination", type=Path, help="the new folder; set MODEL to it afterwards")
    add_options(command)
    command.add_argument(
        "--precision",
        choices=["auto", *map(str, Precision)],
        default="auto",
        help="default: auto, int4 for weights that have 4 bits already, else int8",
    )
    command.set_defaults(act=_convert)


def add_options(command: argparse.ArgumentParser, adapter: Callable[[str], object] = Path) -> None:
    """Add what a conversion can be told, wherever weights come from; `adapter` reads one from its text."""
    add_chat_template(command)
    command.add_argument(
        "--adapter",
        type=adapter,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a LoRA adapter to merge, as peft saves it; several are merged in order",
    )


def _convert(arguments: argparse.Namespace) -> int:
    source = open_source(arguments.source, arguments.adapter, named_chat(arguments.chat_template))
    usual = Precision.INT4 if has_4_bits(source) else Precision.INT8
    precision = usual if arguments.precision == "auto" else Precision(arguments.precision)
    convert_into(source, arguments.destination, precision)
    return 0


def convert_into(model: ModelSource, destination: Path, precision: Precision) -> None:
    """Convert what was opened, and say what came of it. Raises `ModelError`."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Converting {model.name} to {precision}", total=1.0)
        convert(
            model,
            destination,
            precision,
            lambda share: progress.update(task, completed=share),
            lambda: progress.update(task, description="Comparing it with the source", total=None),
        )
    for note in model.notes:
        console.print(note)
    kind = _describe(model.chat.format)
    num_bytes = sum(path.stat().st_size for path in destination.iterdir())
    bits = bits_sentence(bit_shares(model.config, precision, held_by(model)))
    console.print(
        f"{destination} is ready: {model.config.num_parameters / 1e6:.0f} M parameters, {size(num_bytes)} "
        f"({bits}), {kind}."
    )


def _describe(chat_format: str | None) -> str:
    if chat_format is None:
        return "no chat format found: a base model, or name it with --chat-template"
    return f"chat format {chat_format}"
