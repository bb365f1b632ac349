"""Puts nodes and initializers of one ONNX graph together. Knows nothing of what the graph computes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

_ALIGNMENT = 4096
"""ONNX Runtime memory-maps external data that begins at a page."""


class ExternalDataWriter:
    """Appends tensors to `path` and returns the initializers that point there."""

    def __init__(self, path: Path) -> None:
        self._location = path.name
        self._file = path.open("wb")

    def __enter__(self) -> ExternalDataWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, values: npt.NDArray[np.generic]) -> TensorProto:
        """Write `values` at the next page and return its initializer."""
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(offset)
        data = np.ascontiguousarray(values).data
        self._file.write(data)
        tensor = TensorProto(
            name=name,
            dims=values.shape,
            data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        entries = {"location": self._location, "offset": offset, "length": data.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


CONTRIB = "com.microsoft"
_OPSETS = {"": 21, CONTRIB: 1}
_INLINE_BYTES = 256
"""Smaller constants stay in the graph: shapes are needed to infer others."""


class GraphBuilder:
    """One graph in the making; large constants go to `writer` as they come."""

    def __init__(self, writer: ExternalDataWriter) -> None:
        self._writer = writer
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}

    def constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        """Add a constant and return its name; one that is there already stays as it is."""
        if name not in self._initializers:
            small = values.nbytes < _INLINE_BYTES
            self._initializers[name] = (
                numpy_helper.from_array(values, name) if small else self._writer.add(name, values)
            )
        return name

    def share(self, tensor: TensorProto) -> str:
        """Add a constant whose bytes another graph has written already and return its name."""
        name = str(tensor.name)
        self._initializers[name] = tensor
        return name

    def view(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """Add a constant of another shape over the bytes of an existing one and return its name."""
        view = TensorProto()
        view.CopyFrom(self._initializers[of])
        view.name = name
        del view.dims[:]
        view.dims.extend(shape)
        self._initializers[name] = view
        return name

    def node(
        self, kind: str, inputs: list[str], outputs: list[str], *, domain: str = "", **attributes: object
    ) -> None:
        """Add a node with named outputs."""
        self._nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))

    def op(
        self, kind: str, inputs: list[str], output: str = "", *, domain: str = "", **attributes: object
    ) -> str:
        """Add a node with one output and return that output's name."""
        output = output or f"{kind}.{len(self._nodes)}"
        self.node(kind, inputs, [output], domain=domain, **attributes)
        return output

    def build(self, name: str, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> ModelProto:
        """Return the finished model."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="llamacord")
