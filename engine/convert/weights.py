"""The tensors of a decoder, made of a source's and written to the file of a converted model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from engine.convert.gguf_blocks import BLOCK_SIZES, FLOATS, KIND_BITS, WITH_ZERO_POINTS
from engine.convert.quantize import BlockQuantized, quantize, stack
from engine.convert.source import FloatArray, ModelSource, TensorCatalogue
from engine.describing.architecture import (
    DecoderConfig,
    DecoderTensor,
    Precision,
    Role,
    decoder_tensors,
    source_shapes,
)
from engine.describing.footprint import BLOCK_SIZE, NUMBERS, Held, Kept
from engine.describing.stored import ALIGNMENT, BlockTensor, DenseTensor, StoredTensor
from engine.errors import ModelFormatError

Array = npt.NDArray[Any]
_BITS = {Precision.INT8: 8, Precision.INT4: 4}
_TOO_LARGE = 65520.0
"""From here on half precision rounds to infinity."""


def held_by(source: ModelSource) -> Held:
    """Return how a source holds the decoder's tensors, as far as it knows."""
    if not isinstance(source, TensorCatalogue):
        return NUMBERS
    stored = source.catalogue()
    held: dict[str, Kept] = {}
    for tensor in decoder_tensors(source.config):
        kinds = {stored[part].kind for part in tensor.parts if part in stored}
        bits = [0 if kind in FLOATS else KIND_BITS.get(kind, 8) for kind in kinds]
        size = min((BLOCK_SIZES.get(kind, BLOCK_SIZE) for kind in kinds), default=BLOCK_SIZE)
        held[tensor.name] = Kept(max(bits, default=0), not kinds.isdisjoint(WITH_ZERO_POINTS), size)
    return held


def has_4_bits(source: ModelSource) -> bool:
    """Tell whether most of the weights in the layers have 4 bits already."""
    held = held_by(source)
    layers = [tensor for tensor in decoder_tensors(source.config) if tensor.role is Role.LINEAR]
    few = sum(tensor.num_weights for tensor in layers if held.get(tensor.name, Kept()).bits == 4)
    return few > sum(tensor.num_weights for tensor in layers) / 2


class WeightsReader:
    """Reads a source's tensors, checks them, and brings them to a precision."""

    def __init__(self, source: ModelSource, precision: Precision) -> None:
        self._source = source
        self._precision = precision
        self._shapes = source_shapes(source.config)

    def read(self, tensor: DecoderTensor) -> Array | BlockQuantized:
        """Return a decoder's tensor as numbers or in blocks.

        Raises `ModelFormatError` where it is damaged, or too large for the half precision of a GPU.
        """
        if tensor.role is Role.VECTOR:
            return self._joined(tensor, np.float32)
        if self._precision in _BITS:
            return self._packed(tensor, _BITS[self._precision] if tensor.role is Role.LINEAR else 8)
        return self._joined(tensor, np.float16 if self._precision is Precision.FP16 else np.float32)

    def _joined(self, tensor: DecoderTensor, kind: type[np.generic]) -> Array:
        parts: list[Array] = []
        for name in tensor.parts:
            values = self._numbers(name)
            self._check_size(name, values)
            parts.append(values.astype(kind, copy=False))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _packed(self, tensor: DecoderTensor, bits: int) -> BlockQuantized:
        packed = stack([self._blocks(part, bits) for part in tensor.parts])
        if tensor.role is Role.EMBEDDING and packed.zero_points is not None:  # which a look-up does not know
            packed = quantize(self._numbers(tensor.name), bits)
        self._check_size(tensor.name, packed.scales)
        if packed.zero_points is not None:
            self._check_size(tensor.name, packed.zero_points)
        return packed

    def _blocks(self, name: str, bits: int) -> BlockQuantized:
        """Return the source's own blocks, in `bits` at least, or its weights rounded to `bits`."""
        blocks = self._source.blocks(name)
        if blocks is None:
            return quantize(self._numbers(name), bits)
        self._check_shape(name, blocks.shape)
        if not blocks.is_finite:
            raise _damaged(name)
        return blocks.widened() if bits == 8 else blocks

    def _numbers(self, name: str) -> FloatArray:
        values = self._source.tensor(name)
        self._check_shape(name, values.shape)
        if not np.isfinite(values).all():
            raise _damaged(name)
        return values

    def _check_shape(self, name: str, found: tuple[int, ...]) -> None:
        if found != self._shapes[name]:
            shape = self._shapes[name]
            raise ModelFormatError(f"The tensor {name} has the shape {found} instead of {shape}.")

    def _check_size(self, name: str, values: FloatArray) -> None:
        if self._precision.runs_on_gpu and not max(values.max(), -values.min()) < _TOO_LARGE:
            raise ModelFormatError(f"{name} is too large for half precision. Convert to fp32, for the CPU.")


def _damaged(name: str) -> ModelFormatError:
    return ModelFormatError(f"The tensor {name} is damaged: not all of its values are numbers.")


class WeightsWriter:
    """Appends tensors to a file, each array at the next page."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, tensor: DecoderTensor, made: Array | BlockQuantized) -> StoredTensor:
        """Write a decoder's tensor and return where it lies."""
        if not isinstance(made, BlockQuantized):
            values = made.T if tensor.is_transposed else made
            return DenseTensor(made.dtype.name, values.shape, self.append(values))
        zero_points = None if made.zero_points is None else self.append(made.zero_points.T)
        places = (self.append(made.values), self.append(made.scales), zero_points)
        return BlockTensor(made.bits, made.block_size, made.shape, *places)

    def append(self, values: Array) -> int:
        """Write an array and return where it begins."""
        offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(offset)
        self._file.write(np.ascontiguousarray(values).data)
        return offset


def write_tensors(
    config: DecoderConfig,
    reader: WeightsReader,
    writer: WeightsWriter,
    on_progress: Callable[[float], None] = lambda _: None,
) -> dict[str, StoredTensor]:
    """Write all tensors of a decoder; return where each lies. `on_progress` is told the share done.

    Raises `ModelFormatError` where one of them cannot be right.
    """
    written: dict[str, StoredTensor] = {}
    tensors = decoder_tensors(config)
    try:
        for tensor in tensors:
            written[tensor.name] = writer.add(tensor, reader.read(tensor))
            on_progress(len(written) / len(tensors))
    except ValueError as error:
        raise ModelFormatError(f"The weights do not fit the model's description: {error}") from error
    return written
