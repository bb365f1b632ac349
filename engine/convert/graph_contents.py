"""What a converted model's graph says of its weights, without reading them."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from engine.convert.stored_tensors import StoredTensor
from engine.errors import ModelFormatError


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
