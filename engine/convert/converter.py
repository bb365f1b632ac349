"""Opens somebody's weights, whatever their format, and turns them into a model folder, all or nothing.

Everything is written to a temporary folder beside the destination and renamed at the end, so that an
interrupted conversion leaves no folder that looks like a model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from engine.convert.source import MappedSource, ModelSource, VerifiableSource
from engine.convert.weights import WeightsReader, WeightsWriter, held_by, write_tensors
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.footprint import (
    beside_bytes,
    conversion_bytes,
    disk_bytes,
    held_in,
    running_weight_bytes,
    size,
)
from engine.describing.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ChatSpec,
    Manifest,
    Reference,
    describe_files,
)
from engine.errors import ModelFormatError, ModelResourceError
from engine.files import refuse_pointer, scratch_folder
from engine.gpu.reference import record_reference
from engine.machine import machine
from engine.machine.cuda_device import has_driver
from engine.release.files import is_release
from engine.text.prompt import make_chat_format
from engine.text.tokenizer import load_tokenizer

_SPARE_BYTES = 64 * 2**20
_LARGE_BYTES = 2**30
_WRITING = 0.97
"""The share of a conversion that reads and writes weights."""


def open_source(path: Path, adapters: Sequence[Path] = (), chat: ChatSpec | None = None) -> ModelSource:
    """Open the weights at `path` with LoRA adapters merged into them, in this order.

    `chat` is used in the place of the model's own chat format. Raises `ModelFormatError` where there are no
    weights that this program reads, saying what there is.
    """
    # Each reader is imported where there is something to read: `gguf` alone takes a start 30 ms.
    from engine.convert.adapters import AdaptedSource, Adapter
    from engine.convert.other_files import followed

    path = followed(path)
    places = [followed(adapter) for adapter in adapters]
    with_adapter = any(place.resolve() == path.resolve() for place in places)
    source = _open_weights(path, chat, with_adapter=with_adapter)
    return AdaptedSource(source, [Adapter(place) for place in places]) if places else source


def _open_weights(path: Path, chat: ChatSpec | None, *, with_adapter: bool) -> ModelSource:
    from engine.convert.gguf_source import GGUFSource
    from engine.convert.hf_source import HuggingFaceSource
    from engine.convert.other_files import refuse_other_file, refuse_other_folder
    from engine.convert.release_source import ReleaseSource

    if is_release(path):
        released = ReleaseSource(path)
        released.chat = chat or released.chat
        return released
    if path.is_dir():
        refuse_other_folder(path, with_adapter=with_adapter)
        return HuggingFaceSource(path, chat)
    refuse_missing(path)
    refuse_pointer(path)
    refuse_other_file(path)
    return GGUFSource(path, chat)


def refuse_missing(path: Path) -> None:
    """Raise `ModelFormatError` where nothing lies at `path`; it may be an address."""
    if path.exists():
        return
    address = str(path)
    if address.startswith(("hf:", "http:", "https:")):
        named = address if address.startswith("hf:") else "hf:OWNER/NAME"
        raise ModelFormatError(
            f"{address} is not on this machine. To download a model from Hugging Face and convert it: "
            f"python -m engine pull {named}"
        )
    raise ModelFormatError(f"There is no file or folder {path}.")


def convert(
    source: ModelSource,
    destination: Path,
    precision: Precision,
    on_progress: Callable[[float], None] = lambda _: None,
    on_verify: Callable[[], None] = lambda: None,
) -> None:
    """Convert into the new folder `destination`; `on_progress` is told the share done, 0 to 1.

    `on_verify` is called before the finished model is compared with its source, where it can be.

    Raises `ModelResourceError` when the disk is too small or not writable or the destination exists, and
    `ModelFormatError` when the source is damaged.
    """
    parent = destination.parent
    try:
        if destination.exists():
            raise ModelResourceError(f"{destination} already exists. Remove it or choose another folder.")
        parent.mkdir(parents=True, exist_ok=True)
        _check_space(parent, source, precision)
        check_memory(source.config, precision)
        with scratch_folder(parent, f".{destination.name}.partial-") as partial:
            _write(source, partial, precision, on_progress)
            if isinstance(source, VerifiableSource):
                on_verify()
                source.verify(partial)
            partial.chmod(0o755)
            _publish(partial, destination)
    except OSError as error:
        raise ModelResourceError(
            f"The model could not be written to {destination}: {error.strerror}."
        ) from error


def _check_space(folder: Path, source: ModelSource, precision: Precision) -> None:
    needed = disk_bytes(source.config, precision, held_by(source)) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelResourceError(
            f"{folder} has {free / 2**30:.1f} GiB free, the model needs {needed / 2**30:.1f}. Free some."
        )


def check_memory(config: DecoderConfig, precision: Precision) -> None:
    """Raise `ModelResourceError` unless there is enough free memory to convert a model."""
    needed, free = conversion_bytes(config, precision), machine.free_memory_bytes()
    if free is not None and free < needed:
        raise ModelResourceError(
            f"{size(free)} of memory are free, and converting it needs {size(needed)}. Close other programs, "
            "or convert on another machine."
        )


def _write(
    source: ModelSource, folder: Path, precision: Precision, on_progress: Callable[[float], None]
) -> None:
    tokenizer = source.save_tokenizer(folder)
    manifest = Manifest(
        name=source.name,
        precision=precision,
        decoder=source.config,
        tokenizer=tokenizer,
        chat=source.chat,
        bos_id=source.bos_id,
        eos_id=source.eos_id,
        stop_ids=source.stop_ids,
        source=source.origin,
        sampling=dict(source.sampling),
        files={},
        tensors={},
    )
    _check_prompts(folder, manifest)
    with (folder / WEIGHTS_FILE).open("wb") as file:
        reader, writer = WeightsReader(source, precision), WeightsWriter(file)
        tensors = write_tensors(source.config, reader, writer, lambda share: on_progress(_WRITING * share))
    files = describe_files(folder, [WEIGHTS_FILE, tokenizer.file])
    manifest = replace(manifest, files=files, tensors=tensors)
    if isinstance(source, MappedSource):
        source.let_go()
    replace(manifest, reference=_reference(folder, manifest)).save(folder)
    on_progress(1.0)


def _reference(folder: Path, manifest: Manifest) -> Reference | None:
    """Return what the CPU says of the finished model; None where no GPU runs it, or memory is short.

    Of a large model it takes more memory than all the rest, so there must be a GPU that may need it.
    """
    config, precision, free = manifest.decoder, manifest.precision, machine.free_memory_bytes()
    held = held_in(manifest.tensors)
    weights = running_weight_bytes(config, precision, held)
    needed = weights + beside_bytes(config, precision, held) + _SPARE_BYTES
    if not precision.runs_on_gpu or (free is not None and free < needed):
        return None
    if weights > _LARGE_BYTES and not has_driver():
        return None
    return record_reference(folder, manifest, machine.num_physical_cores())


def _check_prompts(folder: Path, manifest: Manifest) -> None:
    """Raise `ModelFormatError` now, rather than after the weights, if no prompt could be made."""
    tokenizer = load_tokenizer(folder, manifest.tokenizer)
    try:
        make_chat_format(manifest, tokenizer)
    except ModelFormatError as error:
        raise ModelFormatError(f"{error} Name another format with --chat-template, or none.") from error


def _publish(partial: Path, destination: Path) -> None:
    """Make the finished folder durable and visible at once. Losing a race to another process is fine."""
    for path in partial.iterdir():
        with path.open("r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
    try:
        partial.rename(destination)
    except OSError:
        if not (destination / MANIFEST_FILE).exists():
            raise
