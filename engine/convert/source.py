"""What a source of weights offers to the converter, whatever its format; and which one lies at a path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engine.convert.quantize import BlockQuantized
from engine.describing.architecture import DecoderConfig, source_shapes
from engine.describing.manifest import ChatSpec, TokenizerSpec

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """What a file says of a tensor: the format's own name of its type, its shape in our order, its size."""

    kind: str
    shape: tuple[int, ...]
    num_bytes: int

    def part(self, rows: range) -> SourceTensor:
        """Return what it says of some of its rows, as many of them as there are."""
        num_rows = max(0, min(rows.stop, self.shape[0]) - rows.start)
        num_bytes = self.num_bytes * num_rows // max(self.shape[0], 1)
        return SourceTensor(self.kind, (num_rows, *self.shape[1:]), num_bytes)


class ModelSource(Protocol):
    """One tensor at a time, so that no source is ever whole in memory.

    Tensors have the names and shapes of `source_shapes`. Matrices are [outputs, inputs]; the rows of q and k
    are in half-split rotary order.
    """

    name: str
    config: DecoderConfig
    chat: ChatSpec
    bos_id: int
    eos_id: int
    stop_ids: tuple[int, ...]
    """What ends the model's turn beside `eos_id`, often nothing."""
    origin: dict[str, str]
    sampling: Mapping[str, float]
    """Its authors' advice on how to sample, by the names of `SamplingParams`."""
    notes: tuple[str, ...]
    """What its user should know of how it is taken."""

    def tensor(self, name: str) -> FloatArray:
        """Return one tensor as float32. Raises `ModelFormatError` when it is missing or unreadable."""

    def blocks(self, name: str) -> BlockQuantized | None:
        """Return one matrix in blocks where the source itself holds it in blocks, else None.

        They stand for what `tensor` returns: exactly where our blocks can, else rounded to 8 bits.
        """

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        """Write the tokenizer's file into `folder` and describe it."""


@runtime_checkable
class TensorCatalogue(Protocol):
    """A source that knows what it holds."""

    def catalogue(self) -> Mapping[str, SourceTensor]:
        """Return what is there, by the names of `ModelSource`; a tensor that is missing is left out."""


@runtime_checkable
class MappedSource(Protocol):
    """A source whose files are mapped into this process's memory."""

    def let_go(self) -> None:
        """Take what was read of the files out of this process's memory; it can be read again."""


@runtime_checkable
class VerifiableSource(Protocol):
    """A source that can tell whether a finished model says what it would say itself."""

    def verify(self, folder: Path) -> None:
        """Compare the model in `folder` with the source. Raises `ModelFormatError` where they differ."""


_PATTERN_SIZE = 2**20
"""Random numbers that are repeated: making billions would take longer than measuring."""

_CHARACTERS = (range(0x4E00, 0xA000), range(0x20000, 0x2A6E0))
"""Of which each token is one, so that text and tokens tell each other."""


class SyntheticSource:
    """A `ModelSource` whose words mean nothing: each is a character of its own."""

    name = "synthetic"
    bos_id = 0
    eos_id = 1
    stop_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] = MappingProxyType({})
    notes: tuple[str, ...] = ()

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.chat = ChatSpec(None)
        self.origin = {"format": "synthetic"}
        self._pattern = np.random.default_rng(0).standard_normal(_PATTERN_SIZE, np.float32)

    def tensor(self, name: str) -> FloatArray:
        shape = source_shapes(self.config)[name]
        if len(shape) == 1:
            return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
        return np.resize(self._pattern, shape) / np.float32(np.sqrt(shape[1]))

    def blocks(self, name: str) -> None:
        """There is nothing quantised here."""

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        characters = islice(map(chr, chain(*_CHARACTERS)), self.config.vocab_size)
        vocabulary = {character: index for index, character in enumerate(characters)}
        described = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
        (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
        return TokenizerSpec("bpe-metaspace", "tokenizer.json")
