"""Turns a `ModelSource` into a model folder, all or nothing.

Everything is written to a temporary folder beside the destination and renamed at the end, so that an
interrupted conversion leaves no folder that looks like a model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.convert.source import ModelSource, VerifiableSource
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.footprint import conversion_bytes, gpu_copy_bytes, running_weight_bytes, weight_bytes
from engine.describing.manifest import (
    DECODER_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    Reference,
    describe_files,
)
from engine.errors import ModelFormatError, ModelResourceError
from engine.files import scratch_folder
from engine.gpu.reference import record_reference
from engine.graphs.decoder_graph import DecoderGraph
from engine.graphs.graph_builder import ExternalDataWriter
from engine.graphs.paged_graph import has_paged_graph, write_paged_graph
from engine.machine import machine
from engine.text.prompt import make_chat_format
from engine.text.tokenizer import load_tokenizer

_SPARE_BYTES = 64 * 2**20


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
            raise ModelResourceError(f"{destination} exists already. Remove it or choose another folder.")
        parent.mkdir(parents=True, exist_ok=True)
        _check_space(parent, source.config, precision)
        _check_memory(source.config)
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


def _check_space(folder: Path, config: DecoderConfig, precision: Precision) -> None:
    written = (count(config, precision, has_offsets=True) for count in (weight_bytes, gpu_copy_bytes))
    needed = sum(written) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelResourceError(
            f"{folder} has {free / 2**30:.1f} GiB free, the model needs {needed / 2**30:.1f}. Free some."
        )


def _check_memory(config: DecoderConfig) -> None:
    needed, free = conversion_bytes(config), machine.free_memory_bytes()
    if free is not None and free < needed:
        raise ModelResourceError(
            f"{free / 2**30:.1f} GiB of memory are free, the conversion needs {needed / 2**30:.1f}. "
            "Close other programs, or convert on another machine."
        )


def _write(
    source: ModelSource, folder: Path, precision: Precision, on_progress: Callable[[float], None]
) -> None:
    num_layers = source.config.num_layers
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
        files={},
    )
    _check_prompts(folder, manifest)
    try:
        with ExternalDataWriter(folder / WEIGHTS_FILE) as writer:
            graph = DecoderGraph(source, precision, writer)
            model = graph.build(lambda done: on_progress(done / (num_layers + 1)))
    except ValueError as error:
        raise ModelFormatError(f"The weights do not fit the model's description: {error}") from error
    (folder / DECODER_FILE).write_bytes(model.SerializeToString())
    names = [DECODER_FILE, WEIGHTS_FILE, tokenizer.file]
    reference = None
    if has_paged_graph(precision):
        names += write_paged_graph(folder, source.config)
        reference = _reference(folder, source.config, precision)
    replace(manifest, files=describe_files(folder, names), reference=reference).save(folder)
    on_progress(1.0)


def _reference(folder: Path, config: DecoderConfig, precision: Precision) -> Reference | None:
    """Return what the CPU says of the finished model, None where it has not got the memory to."""
    free = machine.free_memory_bytes()
    if free is not None and free < running_weight_bytes(config, precision, has_offsets=True) + _SPARE_BYTES:
        return None
    return record_reference(folder, config, machine.num_physical_cores())


def _check_prompts(folder: Path, manifest: Manifest) -> None:
    """Raise `ModelFormatError` now, rather than after the weights, if no prompt could be made."""
    tokenizer = load_tokenizer(folder, manifest.tokenizer)
    try:
        make_chat_format(manifest, tokenizer)
    except ModelFormatError as error:
        raise ModelFormatError(f"{error} Name another format with --chat-format, or none.") from error


def _publish(partial: Path, destination: Path) -> None:
    """Make the finished folder durable and visible at once. Losing a race to another process is fine."""
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        partial.rename(destination)
    except OSError:
        if not (destination / MANIFEST_FILE).exists():
            raise
