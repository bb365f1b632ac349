"""Follows values through an ONNX graph: where they come from, and which matrices they met. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

_SMALL_BYTES = 1024
_RELABELLING = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten"})
PICKING = frozenset({"Gather", "Slice"})


@dataclass(frozen=True, slots=True)
class Linear:
    """A product of `source` and a stored matrix, [in, out] unless it is `transposed`."""

    weight: TensorProto
    transposed: bool
    source: str
    output: str
    position: int
    """Of the node in the graph."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of inputs and outputs."""
        rows, columns = self.weight.dims
        return (columns, rows) if self.transposed else (rows, columns)


class Dataflow:
    """An index over a graph's nodes."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self.inputs = [value.name for value in graph.input]
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.order = {tensor.name: index for index, tensor in enumerate(graph.initializer)}
        self.producers: dict[str, NodeProto] = {}
        self.positions: dict[str, int] = {}
        self.linears: dict[str, Linear] = {}
        for position, node in enumerate(graph.node):
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        self.stored[node.output[0]] = attribute.t
            for output in node.output:
                self.producers[output] = node
                self.positions[output] = position
            if node.op_type == "MatMul":
                self._note_linear(node, position)

    def node(self, name: str) -> NodeProto | None:
        """Return the node that computes a value, None for an input or a stored tensor."""
        return None if name in self.stored else self.producers.get(name)

    def origin(self, name: str, also: Collection[str] = ()) -> str:
        """Follow a value back through operations that change its shape or type only."""
        node = self.node(name)
        while node is not None and (node.op_type in _RELABELLING or node.op_type in also):
            name = node.input[0]
            node = self.node(name)
        return name

    def operation(self, name: str, kind: str, also: Collection[str] = ()) -> NodeProto | None:
        """Return the node behind a value's origin if it is of this kind."""
        node = self.node(self.origin(name, also))
        return node if node is not None and node.op_type == kind else None

    def linear(self, name: str, also: Collection[str] = ()) -> Linear | None:
        """Return the product behind a value's origin, if it is one with a stored matrix."""
        return self.linears.get(self.origin(name, also))

    def constant(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return a small stored tensor."""
        tensor = self.stored.get(self.origin(name))
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.ByteSize() > _SMALL_BYTES:
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def scalar(self, name: str) -> float | None:
        """Return a stored tensor of one value."""
        values = self.constant(name)
        return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None

    def factors(self, name: str) -> list[str]:
        """Return the origins of what is multiplied, however the products are nested."""
        product = self.operation(name, "Mul")
        if product is None:
            return [self.origin(name)]
        return [factor for operand in product.input for factor in self.factors(operand)]

    def upstream(self, name: str, *, shapes: bool = False) -> Iterator[str]:
        """Give every value that `name` is computed from, back to linear products, which end the search.

        Unless `shapes` is set, what only the shape of is used does not count.
        """
        waiting, seen = [name], {name}
        while waiting:
            current = waiting.pop()
            yield current
            node = self.node(current)
            if node is None or current in self.linears or (node.op_type == "Shape" and not shapes):
                continue
            waiting += [value for value in node.input if value and value not in seen]
            seen.update(node.input)

    def _note_linear(self, node: NodeProto, position: int) -> None:
        source, name = node.input
        transposed = False
        while (behind := self.node(name)) is not None and behind.op_type in ("Identity", "Transpose"):
            transposed ^= behind.op_type == "Transpose"
            name = behind.input[0]
        weight = self.stored.get(name)
        if weight is not None and len(weight.dims) == 2:
            self.linears[node.output[0]] = Linear(weight, transposed, source, node.output[0], position)
