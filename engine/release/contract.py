"""The graph of a released Llama-2-Onnx model, and what it agrees to: which inputs and outputs of which shape.

Read before ONNX Runtime sees the file. A graph names the files of its tensors itself, so every name is
checked to stay in its folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from engine.errors import ModelFormatError
from engine.release.files import require_file

_INPUTS = {"x": 3, "attn_mask": 2, "k_cache": 5, "v_cache": 5, "pos": 0}
_OUTPUTS = ("logits", "k_out", "v_out")
_TYPES: dict[int, type[np.generic]] = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Contract:
    """Sizes that inputs and outputs have, and the one type of all but `pos`."""

    hidden_size: int
    num_layers: int
    num_heads: int
    """Of keys and values."""
    head_dim: int
    context_length: int
    dtype: type[np.generic]

    @property
    def precision(self) -> str:
        return "fp16" if self.dtype is np.float16 else "fp32"

    def cache_shape(self, num_tokens: int) -> tuple[int, ...]:
        """Return the shape that keys or values of `num_tokens` tokens have."""
        return (1, self.num_layers, num_tokens, self.num_heads, self.head_dim)


def load_graph(path: Path) -> ModelProto:
    """Read a release's graph without its tensors, whose files are checked. Raises `ModelFormatError`."""
    require_file(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # whatever the parser raises
        raise ModelFormatError(f"{path} is truncated or no ONNX file. Fetch it again.") from error
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _locate(tensor, path)
    return model


def read_contract(model: ModelProto, path: Path) -> Contract:
    """Return what the graph agrees to. Raises `ModelFormatError` for a graph of another kind."""
    inputs = {value.name: _dimensions(value) for value in model.graph.input}
    ranks = {name: len(shape) for name, shape in inputs.items()}
    if ranks != _INPUTS or [value.name for value in model.graph.output][:3] != list(_OUTPUTS):
        raise ModelFormatError(
            f"{path} is no released Llama-2-Onnx model: it does not take {', '.join(_INPUTS)} and give "
            f"{', '.join(_OUTPUTS)}."
        )
    kind = next(value for value in model.graph.input if value.name == "x").type.tensor_type.elem_type
    if kind not in _TYPES:
        raise ModelFormatError(
            f"{path} computes in {TensorProto.DataType.Name(kind)}; float16 and float32 are supported."
        )
    hidden, cache = inputs["x"][2], inputs["k_cache"]
    contract = Contract(
        hidden_size=hidden,
        num_layers=cache[1],
        num_heads=cache[3],
        head_dim=cache[4] or (hidden // cache[3] if cache[3] else 0),
        context_length=inputs["attn_mask"][1],
        dtype=_TYPES[kind],
    )
    if not all((hidden, cache[1], cache[3], contract.head_dim, contract.context_length)):
        raise ModelFormatError(f"{path} does not say how large its inputs are.")
    return contract


def read_tensor(tensor: TensorProto, graph: Path) -> Array:
    """Return one tensor's values, from its own file where it has one. Raises `ModelFormatError`."""
    try:
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.asarray(numpy_helper.to_array(tensor))
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        count = int(np.prod(tensor.dims, dtype=np.int64))
        path, offset, _ = _locate(tensor, graph)
        values = np.fromfile(path, kind, count, offset=offset)
        return values.reshape(tuple(tensor.dims))
    except OSError as error:
        raise ModelFormatError(f"The tensor {tensor.name} cannot be read: {error.strerror}.") from error
    except (TypeError, ValueError) as error:
        raise ModelFormatError(f"The tensor {tensor.name} is damaged: {error}.") from error


def _locate(tensor: TensorProto, graph: Path) -> tuple[Path, int, int]:
    """Return the file of an external tensor with offset and length. Raises `ModelFormatError`."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = graph.absolute().parent
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive
    path = folder / location
    if not location or absolute or ".." in parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ModelFormatError(
            f"{graph} takes the tensor {tensor.name} from {location!r}, outside its folder. Do not use it."
        )
    require_file(path)
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    expected = int(np.prod(tensor.dims, dtype=np.int64)) * kind.itemsize
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError:
        raise ModelFormatError(f"{graph} gives no place for the tensor {tensor.name}.") from None
    if offset < 0 or length != expected or path.stat().st_size < offset + length:
        raise ModelFormatError(f"{path} is truncated: {tensor.name} takes {expected} bytes. Fetch it again.")
    return path, offset, length


def _tensors(model: ModelProto) -> Iterable[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _dimensions(value: onnx.ValueInfoProto) -> list[int]:
    """Return the dimensions of an input, 0 where they vary."""
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
