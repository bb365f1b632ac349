"""The engine's own commands: `python -m engine convert`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from engine.architecture import Precision
from engine.convert.chat_detection import llama2_chat
from engine.convert.converter import convert
from engine.convert.gguf_source import GGUFSource
from engine.errors import EngineError, ModelFormatError
from engine.manifest import ChatSpec

_CHAT_FORMATS = {"llama-2": llama2_chat(), "chatml": ChatSpec("chatml"), "none": ChatSpec(None)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status; expected failures are one sentence on stderr."""
    parsed = _parser().parse_args(arguments)
    try:
        _convert(parsed.source, parsed.destination, Precision(parsed.precision), parsed.chat_format)
    except EngineError as error:
        print(f"llamacord: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("llamacord: stopped; nothing was left behind.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description="Work with models.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "convert", help="turn a GGUF file of the llama architecture into a model folder"
    )
    command.add_argument("source", type=Path, help="the GGUF file")
    command.add_argument("destination", type=Path, help="the new folder; set MODEL to it afterwards")
    command.add_argument("--precision", choices=[str(p) for p in Precision], default=str(Precision.INT8))
    command.add_argument(
        "--chat-format",
        choices=["auto", *_CHAT_FORMATS],
        default="auto",
        help="how the model was trained to chat; auto reads it from the file",
    )
    return parser


def _convert(source: Path, destination: Path, precision: Precision, chat_format: str) -> None:
    if not source.is_file():
        raise ModelFormatError(f"There is no file {source}.")
    model = GGUFSource(source)
    if chat_format != "auto":
        model.chat = _CHAT_FORMATS[chat_format]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Converting {model.name} to {precision}", total=1.0)
        convert(model, destination, precision, lambda share: progress.update(task, completed=share))
    kind = _describe(model.chat.format)
    console.print(f"{destination} is ready: {model.config.num_parameters / 1e6:.0f} M parameters, {kind}.")


def _describe(chat_format: str | None) -> str:
    if chat_format is None:
        return "no chat format found: a base model, or name it with --chat-format"
    return f"chat format {chat_format}"
