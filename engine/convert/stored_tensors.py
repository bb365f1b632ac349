"""What a source may tell of its tensors without reading them: type, shape and size as they lie there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import onnx

from engine.convert.source import tensor_shape
from engine.describing.architecture import DecoderConfig
from engine.errors import ModelFormatError

_LAYER_PARTS = ("attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file; `kind` is the format's own name of its type, `shape` is in our order."""

    kind: str
    shape: tuple[int, ...]
    num_bytes: int


@runtime_checkable
class TensorCatalogue(Protocol):
    """A source that knows what it holds."""

    def stored_tensors(self) -> Mapping[str, StoredTensor]:
        """Return what is there, by the names of `ModelSource`; a tensor that is missing is left out."""


def tensor_names(config: DecoderConfig) -> Iterator[str]:
    """Give the names of all tensors that a source of these dimensions has."""
    yield "embed"
    for layer in range(config.num_layers):
        yield from (f"layers.{layer}.{part}" for part in _LAYER_PARTS)
    yield "final_norm"
    if not config.tied_embeddings:
        yield "head"


def tensor_problems(config: DecoderConfig, stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Give a sentence for each way in which what is stored does not fit the model's description."""
    missing = [name for name in tensor_names(config) if name not in stored]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield f"There is no tensor {missing[0]}{others}. Get the files anew."
    for name, tensor in stored.items():
        expected = tensor_shape(config, name)
        if tensor.shape != expected:
            yield f"The tensor {name} has the shape {tensor.shape}, not {expected}. Get the files anew."
            return


def graph_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the weights of the graph at `path`, by name; two views of the same bytes are one.

    Raises `ModelFormatError`.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:
        raise ModelFormatError(f"{path} is not a readable ONNX graph. Convert the model anew.") from error
    places: dict[tuple[tuple[str, str], ...], onnx.TensorProto] = {}
    for tensor in model.graph.initializer:
        place = tuple(sorted((entry.key, entry.value) for entry in tensor.external_data))
        places.setdefault(place or (("name", tensor.name),), tensor)
    return dict(_described(tensor) for tensor in places.values())


def _described(tensor: onnx.TensorProto) -> tuple[str, StoredTensor]:
    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    shape = tuple(int(size) for size in tensor.dims)
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return tensor.name, StoredTensor(kind, shape, math.prod(shape) * itemsize)
