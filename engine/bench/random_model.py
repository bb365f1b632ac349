"""Writes a model folder of true dimensions and random weights, in seconds and a fraction of its size.

Matrices of one shape are cut from the same random numbers, which lie in the file once: shifted against each
other, they are loaded as different ones, and a model takes the memory and the time of a true one.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from engine.convert.quantize import BLOCK_SIZE, BlockQuantized
from engine.convert.source import SyntheticSource
from engine.convert.weights import Array, WeightsReader, WeightsWriter, write_tensors
from engine.describing.architecture import DecoderConfig, DecoderTensor, Precision, Role
from engine.describing.manifest import WEIGHTS_FILE, Manifest, describe_files
from engine.describing.stored import StoredTensor

PAGE = 4096
MOST_REPEATED = 256
"""Arrays of one shape that differ."""
_POOL_SIZE = 2**22
"""Random numbers that are repeated, an odd number at a time, so that rows differ."""


def write_random_model(folder: Path, config: DecoderConfig, precision: Precision) -> Path:
    """Write the new model folder `folder` and return it. Raises `OSError`."""
    folder.mkdir(parents=True)
    source = SyntheticSource(config)
    with (folder / WEIGHTS_FILE).open("wb") as file:
        tensors = write_tensors(config, _RandomReader(source, precision), _OnceWriter(file))
    for made in (_random_matrix, _random_blocks):
        made.cache_clear()
    tokenizer = source.save_tokenizer(folder)
    Manifest(
        name=source.name,
        precision=precision,
        decoder=config,
        tokenizer=tokenizer,
        chat=source.chat,
        bos_id=source.bos_id,
        eos_id=source.eos_id,
        source=source.origin,
        files=describe_files(folder, [WEIGHTS_FILE, tokenizer.file]),
        tensors=tensors,
    ).save(folder)
    return folder


class _OnceWriter(WeightsWriter):
    """Writes the layers' arrays once for each shape and type; each but the first begins a page further in.

    So no two are the same: ONNX Runtime would keep one copy of those in memory, and caches would hold it.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._is_in_layer = False
        self._written: dict[tuple[object, ...], int] = {}
        self._repeated: Counter[tuple[object, ...]] = Counter()

    def add(self, tensor: DecoderTensor, made: Array | BlockQuantized) -> StoredTensor:
        self._is_in_layer = tensor.name.startswith("layers.")
        return super().add(tensor, made)

    def append(self, values: Array) -> int:
        if not self._is_in_layer:
            return super().append(values)
        key = (values.shape, values.dtype)
        if key not in self._written:
            self._written[key] = super().append(values)
            if values.ndim > 1:
                self._file.write(more_of(values))
        shift = self._repeated[key] % MOST_REPEATED if values.ndim > 1 else 0
        self._repeated[key] += 1
        return self._written[key] + shift * PAGE


def more_of(values: npt.NDArray[np.generic]) -> bytes:
    """Return what follows random numbers in a file, so that they can be cut from it a page further in.

    The same numbers, but for the first: whole rounds of them would be the same matrix again.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    return np.resize(flat[1:], MOST_REPEATED * PAGE // flat.itemsize).tobytes()


class _RandomReader(WeightsReader):
    """Draws weights of a source's shapes, so large that activations keep their size."""

    def _packed(self, tensor: DecoderTensor, bits: int) -> BlockQuantized:
        return _random_blocks(*tensor.shape, bits, self._mute_row(tensor))

    def _joined(self, tensor: DecoderTensor, kind: type[np.generic]) -> Array:
        if tensor.role is Role.VECTOR:
            return np.full(tensor.shape, 0.0 if tensor.name.endswith("bias") else 1.0, kind)
        return _random_matrix(*tensor.shape, np.dtype(kind), self._mute_row(tensor))

    def _mute_row(self, tensor: DecoderTensor) -> int | None:
        """Return the row of the head that is 0: the end is never likely, so that no answer ends by chance."""
        return None if tensor.role is Role.LINEAR else self._source.eos_id


@cache
def _pool() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(_POOL_SIZE + 1, np.float32)


@cache
def _byte_pool() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, _POOL_SIZE + 1, np.uint8)


@cache
def _random_matrix(rows: int, columns: int, kind: np.dtype[Any], mute_row: int | None) -> Array:
    """Return [rows, columns] numbers whose product with a vector has the vector's size."""
    matrix = np.resize((_pool() / np.float32(columns**0.5)).astype(kind), (rows, columns))
    if mute_row is not None:
        matrix[mute_row] = 0
    return matrix


@cache
def _random_blocks(rows: int, columns: int, bits: int, mute_row: int | None) -> BlockQuantized:
    """Return such a matrix in blocks, whose values are evenly spread over all that `bits` can say."""
    num_blocks = columns // BLOCK_SIZE
    values = np.resize(_byte_pool(), (rows, num_blocks, BLOCK_SIZE * bits // 8))
    spread = 2**bits / 12**0.5
    sizes = (1 + _pool().clip(-2, 2) / 4) / (spread * columns**0.5)
    scales = np.resize(sizes.astype(np.float32), (rows, num_blocks))
    if mute_row is not None:
        scales[mute_row] = 0
    return BlockQuantized(bits, values, scales)
