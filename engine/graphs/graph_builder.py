"""Puts nodes and initializers of one ONNX graph together. Knows nothing of what the graph computes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

CONTRIB = "com.microsoft"
_OPSETS = {"": 21, CONTRIB: 1}


class GraphBuilder:
    """One graph in the making. What lies in a file is referred to, never read."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}

    def constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        """Add a constant and return its name; one that is there already stays as it is."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(values, name)
        return name

    def stored(self, name: str, kind: str, shape: tuple[int, ...], file: str, offset: int) -> str:
        """Add a constant of numpy's type `kind` that lies in `file` from a byte on; return its name."""
        if name not in self._initializers:
            data_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
            tensor = TensorProto(
                name=name, dims=shape, data_type=data_type, data_location=TensorProto.EXTERNAL
            )
            length = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
            for key, value in (("location", file), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
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

    def build(self, name: str, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> bytes:
        """Return the finished model, serialised."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
        model: ModelProto = helper.make_model(
            graph, opset_imports=opsets, ir_version=10, producer_name="llamacord"
        )
        return bytes(model.SerializeToString())
