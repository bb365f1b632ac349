"""From a name at Hugging Face to a converted model: looked at, fetched if it will run, converted once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.advising.advice import Advice, Fit, Load, Option, advise
from engine.advising.inspection import Description, inspect
from engine.convert.adapters import AdaptedSource, Adapter
from engine.convert.converter import check_memory, convert, open_source
from engine.convert.source import ModelSource
from engine.describing.architecture import Precision
from engine.describing.footprint import gpu_weight_bytes, size
from engine.describing.manifest import FORMAT_VERSION, ChatSpec, load_manifest
from engine.errors import ModelFormatError, ModelResourceError
from engine.files import scratch_folder
from engine.hub.address import HubAddress, converted_folder, pulled_folder
from engine.hub.choice import Choice, adapter_files, choose
from engine.hub.hub import Hub, Repository
from engine.hub.skeleton import make_skeleton
from engine.machine import machine
from engine.machine.cuda_device import NoCudaError, find_device

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, 0 to 1."""
_SPARE_BYTES = 2**28
_LEAST = Load(num_conversations=1, num_tokens=2048)
"""What a model must have room for to be of any use."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model at the hub that can run here, and how it is to be converted."""

    repository: Repository
    choice: Choice
    description: Description
    precision: Precision
    advice: Advice
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """How large the files are that it takes."""
        return sum(self.repository.files[name].num_bytes for name in _all(self.choice))


def ensure_pulled(
    cache: Path,
    address: HubAddress,
    precision: Precision | None,
    hub: Hub,
    on_progress: Progress,
    *,
    has_chat_template: bool = False,
) -> Path:
    """Return the folder of a chat model from the hub; look at it, fetch and convert it first where needed.

    Without `precision` it is what suits file and machine. has_chat_template: whether somebody says how it
    chats where it does not. Raises `ModelError`.
    """
    folder = pulled_folder(cache, address, precision)
    if folder is not None:
        load_manifest(folder)
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelResourceError(
            f"The cache folder {cache} cannot be used: {error.strerror}. Set LLAMA_CACHE."
        ) from error
    on_progress(f"Looking at {address.repository}", 0.0)
    found = find(hub, address, precision, cache, cache)
    if found.description.chat.format is None and not has_chat_template:
        raise ModelFormatError(
            f"{address.repository} is a base model: it completes text but can't chat. Look for one "
            "whose name has Instruct or Chat in it, or set CHAT_TEMPLATE to how it was trained to chat."
        )
    on_progress(f"Looking at {address.repository}", 1.0)
    folder = converted_folder(cache, address, found.precision)
    source = fetch(hub, found, on_progress)
    convert(source, folder, found.precision, lambda share: on_progress("Converting the model", share))
    for version in range(1, FORMAT_VERSION):
        shutil.rmtree(converted_folder(cache, address, found.precision, version), ignore_errors=True)
    return folder


def find(
    hub: Hub,
    address: HubAddress,
    precision: Precision | None,
    scratch: Path,
    destination: Path,
    adapters: Sequence[Path] = (),
    chat: ChatSpec | None = None,
) -> Found:
    """Look at a model without fetching its weights, and decide how it is to run.

    chat: a format in the place of its own. scratch: a folder that exists. destination: where it is going to
    be converted to, for the room on that disk. Raises `ModelError` for what cannot be fetched, read, or run
    here.
    """
    repository = hub.look(address)
    choice = choose(address, repository.files, lambda name: hub.read(repository, name))
    with scratch_folder(scratch, ".skeleton-") as folder:
        path = make_skeleton(hub, repository, choice, folder)
        description, notes = _inspected(address, path, adapters, chat)
    advice = advise(description.config, machine.resources(), _LEAST, {}, description.blocks)
    chosen = _precision(description, advice, precision)
    _check_disk(hub, repository, choice, destination, advice.option(chosen))
    check_memory(description.config, chosen)
    return Found(repository, choice, description, chosen, advice, notes)


def fetch(
    hub: Hub,
    found: Found,
    on_progress: Progress,
    adapters: Sequence[Path] = (),
    chat: ChatSpec | None = None,
) -> ModelSource:
    """Fetch what is not there yet and open it, with `chat` in the place of its own. Raises `ModelError`."""
    opened = fetch_files(hub, found.repository, found.choice, on_progress)
    source = open_source(opened.parent if found.choice.is_folder else opened, adapters, chat)
    source.origin = {
        **source.origin,
        "repository": found.repository.name,
        "revision": found.repository.commit,
    }
    return source


def fetch_adapter(hub: Hub, address: HubAddress, on_progress: Progress) -> Path:
    """Return the folder of a LoRA adapter from the hub. Raises `ModelError`."""
    repository = hub.look(address)
    choice = adapter_files(address, repository.files)
    return fetch_files(hub, repository, choice, on_progress).parent


def fetch_files(hub: Hub, repository: Repository, choice: Choice, on_progress: Progress) -> Path:
    """Fetch the files that were chosen, and return the place of the one to open."""
    names = _all(choice)
    total, num_there = sum(repository.files[name].num_bytes for name in names), 0
    stage = f"Downloading {repository.name} ({size(total)})"

    def on_bytes(number: int) -> None:
        nonlocal num_there
        num_there += number
        on_progress(stage, num_there / max(1, total))

    places = {name: hub.fetch(repository, name, on_bytes) for name in names}
    on_progress(stage, 1.0)
    return places[choice.opened]


def _all(choice: Choice) -> tuple[str, ...]:
    return (*choice.descriptions, *choice.weights)


def _inspected(
    address: HubAddress, path: Path, adapters: Sequence[Path], chat: ChatSpec | None
) -> tuple[Description, tuple[str, ...]]:
    found = inspect(path, chat=chat)
    if found.problems or found.description is None:
        reason = found.problems[0] if found.problems else "it cannot be read."
        raise ModelFormatError(f"{address.repository} cannot run here: {_named(reason, path, address)}")
    if adapters:
        AdaptedSource(open_source(path), [Adapter(folder) for folder in adapters])
    return found.description, tuple(found.notes)


def _named(reason: str, path: Path, address: HubAddress) -> str:
    """Put the repository's name where a sentence has the path of the skeleton."""
    return reason.replace(str(path), address.repository).replace(f"{path.parent}/", "")


def _precision(description: Description, advice: Advice, wanted: Precision | None) -> Precision:
    """Return the precision to convert to. Raises `ModelResourceError` where it does not fit here."""
    option = advice.chosen if wanted is None else advice.option(wanted)
    if option is not None and option.fit is not Fit.NO:
        return option.precision
    for precision in (Precision.INT8, Precision.INT4) if wanted is None else (wanted,):
        if precision.runs_on_gpu and _fits_gpu(description, precision):
            return precision
    if option is None:
        raise ModelResourceError(advice.sentences[0])
    raise ModelResourceError(
        f"In {option.precision} it needs {size(option.memory.total)} of memory, but there are only "
        f"{size(machine.memory_bytes())}. Use fewer bits or a smaller model: python -m engine models."
    )


def _fits_gpu(description: Description, precision: Precision) -> bool:
    with suppress(NoCudaError):
        needed = gpu_weight_bytes(description.config, precision, description.blocks.held)
        return needed < 0.8 * find_device().total_bytes
    return False


def _check_disk(
    hub: Hub,
    repository: Repository,
    choice: Choice,
    destination: Path,
    option: Option,
) -> None:
    """Raise `ModelResourceError` unless there is room for the download and for what is made of it."""
    download = sum(hub.missing_bytes(repository, name) for name in _all(choice))
    converted = option.disk_bytes
    downloads, target = (_nearest(folder) for folder in (hub.cache, destination))
    if downloads.stat().st_dev == target.stat().st_dev:
        needs = {target: download + converted}
    else:
        needs = {downloads: download, target: converted}
    for folder, needed in needs.items():
        free = shutil.disk_usage(folder).free
        if free < needed + _SPARE_BYTES:
            raise ModelResourceError(
                f"The disk of {folder} has {size(free)} free, and {repository.name} needs {size(needed)}: "
                f"{size(download)} to download, {size(converted)} converted. Free some, or move HF_HOME or "
                "LLAMA_CACHE to a larger disk."
            )


def _nearest(folder: Path) -> Path:
    """Return `folder`, or the first one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())
