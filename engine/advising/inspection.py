"""Looks at a model as it lies on the disk, converted or not, and says what it is and what is wrong with it.

Loads no weights unless it is asked to verify them. Whatever is wrong becomes a sentence, never an exception.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.advising.advice import Blocks
from engine.convert.source import ModelSource, tensor_shape
from engine.convert.sources import open_source
from engine.convert.stored_tensors import (
    StoredTensor,
    TensorCatalogue,
    graph_tensors,
    tensor_names,
    tensor_problems,
)
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.manifest import (
    DECODER_FILE,
    MANIFEST_FILE,
    ChatSpec,
    TokenizerSpec,
    load_manifest,
    verify_files,
)
from engine.errors import ModelError
from engine.text.prompt import make_chat_format
from engine.text.tokenizer import load_tokenizer

_4_BIT_KINDS = {"Q4_0", "Q4_1", "Q4_K"}
"""GGUF's types that mean the same as our 4-bit blocks."""
_OFFSET_KINDS = {"Q4_1", "Q4_K"}
_OFFSETS = ".offsets"
"""How the graph of a converted model names them."""

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


@dataclass(slots=True)
class Inspection:
    """What was found at a path. `problems` keep the model from being used, `notes` do not."""

    path: Path
    kind: str
    num_bytes: int
    description: Description | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inspect(path: Path, *, verify: bool = False, on_progress: OnProgress = lambda _: None) -> Inspection:
    """Inspect what lies at `path`; `verify` reads every byte of it, which takes time."""
    is_converted = (path / MANIFEST_FILE).exists()
    found = Inspection(path, "converted model" if is_converted else "nothing readable", _bytes_at(path))
    try:
        if is_converted:
            _inspect_folder(found, verify)
        else:
            _inspect_source(found, verify, on_progress)
    except ModelError as error:
        found.problems.append(str(error))
    if found.description is not None and found.description.chat.format is None:
        found.notes.append("A base model: it completes text and cannot chat, so the bot has no use for it.")
    return found


def _inspect_folder(found: Inspection, verify: bool) -> None:
    manifest = load_manifest(found.path)
    description = Description(
        manifest.name, manifest.decoder, manifest.chat, manifest.source, manifest.precision
    )
    found.description = description
    verify_files(found.path, manifest, full=verify)
    tokenizer = load_tokenizer(found.path, manifest.tokenizer)
    tensors = graph_tensors(found.path / DECODER_FILE)
    found.description = dataclasses.replace(
        description,
        tensors=_groups(tensors),
        tokenizer=manifest.tokenizer,
        num_tokens=tokenizer.vocab_size,
        blocks=Blocks(
            has_4_bits=manifest.precision == "int4",
            has_offsets=any(name.endswith(_OFFSETS) for name in tensors),
        ),
    )
    found.problems += _vocabulary_problems(manifest.decoder, tokenizer.vocab_size)
    make_chat_format(manifest, tokenizer)


def _inspect_source(found: Inspection, verify: bool, on_progress: OnProgress) -> None:
    source = open_source(found.path)
    kind = source.origin.get("format", "unknown")
    found.kind = f"{_KINDS.get(kind, kind)}, not converted yet"
    if kind == _RELEASED:
        found.notes.append(
            "It also runs as it is, as MODEL or with `complete`, one answer at a time and slower."
        )
    stored: Mapping[str, StoredTensor] = {}
    if isinstance(source, TensorCatalogue):
        stored = source.stored_tensors()
        found.problems += tensor_problems(source.config, stored)
    tokenizer: TokenizerSpec | None = None
    num_tokens: int | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="llamacord-") as scratch:
            tokenizer = source.save_tokenizer(Path(scratch))
            num_tokens = load_tokenizer(Path(scratch), tokenizer).vocab_size
        found.problems += _vocabulary_problems(source.config, num_tokens)
    except ModelError as error:
        found.problems.append(str(error))
    except OSError as error:
        found.notes.append(f"The tokenizer could not be tried: {error.strerror}.")
    found.description = Description(
        source.name,
        source.config,
        source.chat,
        source.origin,
        tensors=_groups(stored),
        tokenizer=tokenizer,
        num_tokens=num_tokens,
        blocks=_source_blocks(stored),
    )
    if verify and not found.problems:
        found.problems += _weight_problems(source, on_progress)


def _weight_problems(source: ModelSource, on_progress: OnProgress) -> Iterator[str]:
    """Read every weight, one tensor at a time."""
    names = list(tensor_names(source.config))
    for index, name in enumerate(names):
        on_progress(index / len(names))
        values = source.tensor(name)
        if values.shape != tensor_shape(source.config, name):
            yield f"The tensor {name} has the shape {values.shape}. Get the files anew."
        elif not np.isfinite(values).all():
            yield f"The tensor {name} holds values that are no numbers. Get the files anew."


def _vocabulary_problems(config: DecoderConfig, num_tokens: int) -> Iterator[str]:
    if num_tokens > config.vocab_size:
        yield (
            f"The tokenizer knows {num_tokens} tokens and the model only {config.vocab_size}: they do not "
            "belong together. Get the tokenizer of this very model."
        )


def _source_blocks(stored: Mapping[str, StoredTensor]) -> Blocks:
    """Tell from the type of most of the weights what becomes of them."""
    groups = _groups(stored)
    kind = groups[0].kind if groups else ""
    return Blocks(has_4_bits=kind in _4_BIT_KINDS, has_offsets=kind in _OFFSET_KINDS)


def _groups(tensors: Mapping[str, StoredTensor]) -> tuple[TensorGroup, ...]:
    """Sum the tensors up by type, the largest share first."""
    sums: dict[str, TensorGroup] = {}
    for tensor in tensors.values():
        old = sums.get(tensor.kind, TensorGroup(tensor.kind, 0, 0))
        sums[tensor.kind] = TensorGroup(tensor.kind, old.count + 1, old.num_bytes + tensor.num_bytes)
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
