"""`python -m engine pull`: fetches a model from Hugging Face and turns it into a model folder."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from engine.commands import Subparsers, convert
from engine.describing.architecture import Precision
from engine.describing.footprint import size
from engine.errors import ModelResourceError
from engine.hub.address import HubAddress
from engine.text.chat_choice import named_chat


def add_to(commands: Subparsers) -> None:
    """Add the command's arguments."""
    command = commands.add_parser("pull", help="fetch a model from Hugging Face and convert it")
    command.add_argument(
        "model",
        type=_address,
        metavar="hf:OWNER/NAME[:QUANT or FILE][@REVISION]",
        help="for example hf:bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M",
    )
    command.add_argument(
        "destination", type=Path, nargs="?", help="the new folder; default: models/NAME; set MODEL to it"
    )
    convert.add_options(command, _adapter)
    command.add_argument(
        "--precision",
        choices=["auto", *map(str, Precision)],
        default="auto",
        help="default: auto, whichever suits the file and this machine",
    )
    command.set_defaults(act=pull)


def _address(written: str) -> HubAddress:
    try:
        return HubAddress.parse(written)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _adapter(written: str) -> HubAddress | Path:
    return _address(written) if HubAddress.is_one(written) else Path(written)


def pull(arguments: argparse.Namespace) -> int:
    """Fetch and convert. Raises `ModelError`."""
    from engine.hub import pulling
    from engine.hub.hub import Hub

    address: HubAddress = arguments.model
    destination = arguments.destination or Path("models") / address.repository.rpartition("/")[2].lower()
    if destination.exists():
        raise ModelResourceError(f"{destination} already exists. Remove it, or name another folder.")
    precision = None if arguments.precision == "auto" else Precision(arguments.precision)
    hub, console, chat = Hub(), Console(stderr=True), named_chat(arguments.chat_template)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars, tempfile.TemporaryDirectory() as scratch:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=share)

        adapters = [
            pulling.fetch_adapter(hub, adapter, on_progress) if isinstance(adapter, HubAddress) else adapter
            for adapter in arguments.adapter
        ]
        looking = bars.add_task(f"Looking at {address.repository}", total=None)
        found = pulling.find(hub, address, precision, Path(scratch), destination, adapters, chat)
        bars.update(looking, total=1.0, completed=1.0)
        memory = found.advice.option(found.precision).memory.total
        bars.print(
            f"{found.description.name}: {found.description.config.num_parameters / 1e6:,.0f} M parameters, "
            f"{size(found.num_bytes)} to download; as {found.precision} it needs at least {size(memory)}."
        )
        for note in found.notes:
            bars.print(note)
        source = pulling.fetch(hub, found, on_progress, adapters, chat)
    convert.convert_into(source, destination, found.precision)
    console.print(f"Now add MODEL={destination} to .env. The download stays in {hub.cache}.", soft_wrap=True)
    return 0
