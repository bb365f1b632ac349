"""Writes a model folder of true dimensions and random weights, in seconds and a fraction of its size.

Matrices of one shape are cut from the same random numbers, which lie in the file once: shifted against each
other, they are loaded as different ones, and a model takes the memory and the time of a true one.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from engine.convert.quantize import BLOCK_SIZE, BlockQuantized
from engine.convert.source import SyntheticSource, tensor_shape
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.manifest import DECODER_FILE, WEIGHTS_FILE, Manifest, describe_files
from engine.graphs.decoder_graph import DecoderGraph
from engine.graphs.graph_builder import ExternalDataWriter
from engine.graphs.linear import Weights
from engine.graphs.paged_graph import has_paged_graph, write_paged_graph

PAGE = 4096
MOST_REPEATED = 256
"""Arrays of one shape that differ."""
_POOL_SIZE = 2**22
"""Random numbers that are repeated, an odd number at a time, so that rows differ."""


def write_random_model(folder: Path, config: DecoderConfig, precision: Precision) -> Path:
    """Write the new model folder `folder` and return it. Raises `OSError`."""
    folder.mkdir(parents=True)
    source = SyntheticSource(config)
    with OnceWriter(folder / WEIGHTS_FILE) as writer:
        model = DecoderGraph(source, precision, writer, RandomWeights).build()
    for made in (_random_matrix, _random_blocks):
        made.cache_clear()
    (folder / DECODER_FILE).write_bytes(model.SerializeToString())
    tokenizer = source.save_tokenizer(folder)
    names = [DECODER_FILE, WEIGHTS_FILE, tokenizer.file]
    if has_paged_graph(precision):
        names += write_paged_graph(folder, config, OnceWriter)
    Manifest(
        name=source.name,
        precision=precision,
        decoder=config,
        tokenizer=tokenizer,
        chat=source.chat,
        bos_id=source.bos_id,
        eos_id=source.eos_id,
        source=source.origin,
        files=describe_files(folder, names),
    ).save(folder)
    return folder


class OnceWriter(ExternalDataWriter):
    """Writes the layers' arrays once for each shape and type; each but the first begins a page further in.

    So no two are the same: ONNX Runtime would keep one copy of those in memory, and caches would hold it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._written: dict[tuple[object, ...], TensorProto] = {}
        self._repeated: Counter[tuple[object, ...]] = Counter()

    def add(self, name: str, values: npt.NDArray[np.generic]) -> TensorProto:
        if not name.startswith("layers."):
            return super().add(name, values)
        key = (values.shape, values.dtype)
        if key not in self._written:
            self._written[key] = super().add(name, values)
            if values.ndim > 1:
                self._file.write(more_of(values))
        tensor = TensorProto()
        tensor.CopyFrom(self._written[key])
        tensor.name = name
        if values.ndim > 1:
            place = next(entry for entry in tensor.external_data if entry.key == "offset")
            place.value = str(int(place.value) + self._repeated[key] % MOST_REPEATED * PAGE)
            self._repeated[key] += 1
        return tensor


def more_of(values: npt.NDArray[np.generic]) -> bytes:
    """Return what follows random numbers in a file, so that they can be cut from it a page further in.

    The same numbers, but for the first: whole rounds of them would be the same matrix again.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    return np.resize(flat[1:], MOST_REPEATED * PAGE // flat.itemsize).tobytes()


class RandomWeights(Weights):
    """Weights of a source's shapes that are drawn here, so large that activations keep their size."""

    def stacked(self, parts: list[str], bits: int) -> BlockQuantized:
        return _random_blocks(*self._shape(parts), bits, self._mute_row(parts))

    def joined(self, name: str, parts: list[str]) -> npt.NDArray[np.generic]:  # noqa: ARG002
        half = self._precision is Precision.FP16
        return _random_matrix(*self._shape(parts), np.float16 if half else np.float32, self._mute_row(parts))

    def _shape(self, parts: list[str]) -> tuple[int, int]:
        shapes = [tensor_shape(self._config, part) for part in parts]
        return sum(rows for rows, _ in shapes), shapes[0][1]

    def _mute_row(self, parts: list[str]) -> int | None:
        """Return the row of the head that is 0: the end is never likely, so that no answer ends by chance."""
        return self._source.eos_id if parts[0] in ("embed", "head") else None


@cache
def _pool() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(_POOL_SIZE + 1, np.float32)


@cache
def _byte_pool() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, _POOL_SIZE + 1, np.uint8)


@cache
def _random_matrix(
    rows: int, columns: int, kind: type[np.generic], mute_row: int | None
) -> npt.NDArray[np.generic]:
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
