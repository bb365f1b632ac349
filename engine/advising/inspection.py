"""Looks at a model as it lies on the disk, converted or not, and says what it is and what is wrong with it.

Loads no weights unless it is asked to verify them. Whatever is wrong becomes a sentence, never an exception.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.advising.advice import Blocks
from engine.convert.converter import open_source
from engine.convert.source import ModelSource, SourceTensor, TensorCatalogue
from engine.convert.weights import has_4_bits, held_by
from engine.describing.architecture import DecoderConfig, Precision, source_shapes
from engine.describing.footprint import held_in
from engine.describing.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ChatSpec,
    TokenizerSpec,
    load_manifest,
    verify_files,
)
from engine.errors import ModelError
from engine.text.prompt import make_chat_format
from engine.text.tokenizer import load_tokenizer

_RELEASED = "llama-2-onnx"
_KINDS = {
    "gguf": "GGUF file",
    "huggingface": "Hugging Face folder",
    _RELEASED: "released Llama-2-Onnx model",
}

OnProgress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """All tensors of one type."""

    kind: str
    count: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Description:
    """What a model says of itself. `precision` is None before conversion."""

    name: str
    config: DecoderConfig
    chat: ChatSpec
    origin: Mapping[str, str]
    precision: Precision | None = None
    tensors: tuple[TensorGroup, ...] = ()
    tokenizer: TokenizerSpec | None = None
    num_tokens: int | None = None
    """Of the tokenizer."""
    blocks: Blocks = field(default_factory=Blocks)
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Its authors' advice."""


@dataclass(slots=True)
class Inspection:
    """What was found at a path. `problems` keep the model from being used, `notes` do not."""

    path: Path
    kind: str
    num_bytes: int
    description: Description | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inspect(
    path: Path,
    *,
    chat: ChatSpec | None = None,
    verify: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> Inspection:
    """Inspect what lies at `path`, with `chat` in the place of the chat format of what is not converted yet.

    `verify` reads every byte of it, which takes time.
    """
    is_converted = (path / MANIFEST_FILE).exists()
    found = Inspection(path, "converted model" if is_converted else "nothing readable", _bytes_at(path))
    try:
        if is_converted:
            _inspect_folder(found, verify)
        else:
            _inspect_source(found, chat, verify, on_progress)
    except ModelError as error:
        found.problems.append(str(error))
    if found.description is not None and found.description.chat.format is None:
        found.notes.append("A base model: it completes text but can't chat, so the bot can't use it.")
    return found


def _inspect_folder(found: Inspection, verify: bool) -> None:
    manifest = load_manifest(found.path)
    description = Description(
        manifest.name,
        manifest.decoder,
        manifest.chat,
        manifest.source,
        manifest.precision,
        sampling=manifest.sampling,
    )
    found.description = description
    verify_files(found.path, manifest, full=verify)
    tokenizer = load_tokenizer(found.path, manifest.tokenizer)
    tensors = manifest.tensors
    found.description = dataclasses.replace(
        description,
        tensors=_groups((tensor.type, tensor.num_bytes) for tensor in tensors.values()),
        tokenizer=manifest.tokenizer,
        num_tokens=tokenizer.vocab_size,
        blocks=Blocks(
            has_4_bits=manifest.precision == "int4",
            held=held_in(tensors),
            beside_bytes=_bytes_at(found.path) - manifest.files[WEIGHTS_FILE].size,
        ),
    )
    found.problems += _vocabulary_problems(manifest.decoder, tokenizer.vocab_size)
    make_chat_format(manifest, tokenizer)


def _inspect_source(found: Inspection, chat: ChatSpec | None, verify: bool, on_progress: OnProgress) -> None:
    source = open_source(found.path, chat=chat)
    kind = source.origin.get("format", "unknown")
    found.kind = f"{_KINDS.get(kind, kind)}, not converted yet"
    if kind == _RELEASED:
        found.notes.append(
            "It also runs as it is, as MODEL or with `complete`, but slower and one answer at a time."
        )
    found.notes += source.notes
    stored: Mapping[str, SourceTensor] = {}
    if isinstance(source, TensorCatalogue):
        stored = source.catalogue()
        found.problems += _tensor_problems(source.config, stored)
    tokenizer: TokenizerSpec | None = None
    num_tokens: int | None = None
    tokenizer_bytes = 0
    try:
        with tempfile.TemporaryDirectory(prefix="llamacord-") as scratch:
            tokenizer = source.save_tokenizer(Path(scratch))
            loaded = load_tokenizer(Path(scratch), tokenizer)
            num_tokens = loaded.vocab_size
            tokenizer_bytes = _bytes_at(Path(scratch))
        found.problems += _vocabulary_problems(source.config, num_tokens)
        make_chat_format(source, loaded)
    except ModelError as error:
        found.problems.append(str(error))
    except OSError as error:
        found.notes.append(f"The tokenizer could not be tried: {error.strerror}.")
    groups = _groups((tensor.kind, tensor.num_bytes) for tensor in stored.values())
    found.description = Description(
        source.name,
        source.config,
        source.chat,
        source.origin,
        tensors=groups,
        tokenizer=tokenizer,
        num_tokens=num_tokens,
        blocks=Blocks(has_4_bits(source), held_by(source), tokenizer_bytes),
        sampling=source.sampling,
    )
    if verify and not found.problems:
        found.problems += _weight_problems(source, on_progress)


def _tensor_problems(config: DecoderConfig, stored: Mapping[str, SourceTensor]) -> Iterator[str]:
    """Give a sentence for each way in which what is stored does not fit the model's description."""
    shapes = source_shapes(config)
    missing = [name for name in shapes if name not in stored]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield f"There is no tensor {missing[0]}{others}. Get the files again."
    for name, tensor in stored.items():
        if tensor.shape != shapes[name]:
            yield f"The tensor {name} has the shape {tensor.shape}, not {shapes[name]}. Get the files again."
            return


def _weight_problems(source: ModelSource, on_progress: OnProgress) -> Iterator[str]:
    """Read every weight, one tensor at a time."""
    shapes = source_shapes(source.config)
    for index, (name, shape) in enumerate(shapes.items()):
        on_progress(index / len(shapes))
        values = source.tensor(name)
        if values.shape != shape:
            yield f"The tensor {name} has the shape {values.shape}. Get the files again."
        elif not np.isfinite(values).all():
            yield f"The tensor {name} holds values that aren't numbers. Get the files again."


def _vocabulary_problems(config: DecoderConfig, num_tokens: int) -> Iterator[str]:
    if num_tokens > config.vocab_size:
        yield (
            f"The tokenizer knows {num_tokens} tokens and the model only {config.vocab_size}: they do not "
            "belong together. Get the tokenizer of this very model."
        )


def _groups(tensors: Iterable[tuple[str, int]]) -> tuple[TensorGroup, ...]:
    """Sum tensors of a type and a size up by type, the largest share first."""
    sums: dict[str, TensorGroup] = {}
    for kind, num_bytes in tensors:
        old = sums.get(kind, TensorGroup(kind, 0, 0))
        sums[kind] = TensorGroup(kind, old.count + 1, old.num_bytes + num_bytes)
    return tuple(sorted(sums.values(), key=lambda group: -group.num_bytes))


def _bytes_at(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total
