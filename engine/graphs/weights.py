"""A converted model's tensors as nodes of its graph, in the type that the device computes in.

What lies in another type is cast: of a constant ONNX Runtime does so once, when it loads. A tied head reads
the embedding's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from engine.describing.manifest import WEIGHTS_FILE
from engine.describing.stored import BlockTensor, DenseTensor, StoredTensor
from engine.graphs.graph_builder import CONTRIB, GraphBuilder

FLOAT, HALF = "float32", "float16"
_ONNX_TYPES = {FLOAT: TensorProto.FLOAT, HALF: TensorProto.FLOAT16}
_CPU_ATTRIBUTES = {"accuracy_level": 4}
"""Activations as int8. Without it 8-bit weights are 100 times slower on a CPU."""


class StoredWeights:
    """Adds tensors of `weights.bin` to a graph that computes in `FLOAT`, as the CPU, or in `HALF`."""

    def __init__(self, graph: GraphBuilder, tensors: Mapping[str, StoredTensor], computes_in: str) -> None:
        self._graph = graph
        self._tensors = tensors
        self._type = computes_in

    def vector(self, name: str) -> str:
        """Add the weights of a norm and return their name."""
        return self._dense(name, name)

    def embedding(self, ids: str) -> str:
        """Look ids up."""
        tensor = self._tensors["embed"]
        if isinstance(tensor, DenseTensor):
            rows = self._file("embed.weight", tensor.type, tensor.shape, tensor.offset)
            return self._cast(self._graph.op("Gather", [rows, ids], axis=0), tensor.type)
        rows = self._file("embed.rows", "uint8", tensor.shape, tensor.values)
        return self._graph.op(
            "GatherBlockQuantized", [rows, ids, self._scales("embed", tensor)], domain=CONTRIB,
            bits=tensor.bits, block_size=tensor.block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def head(self, rows: str, output: str = "") -> str:
        """Compute the logits [R, vocab] of rows [R, hidden]."""
        if "head" in self._tensors:
            return self.linear("head", rows, output)
        if isinstance(self._tensors["embed"], BlockTensor):
            return self.linear("embed", rows, output)
        return self._graph.op("Gemm", [rows, self._dense("embed", "embed.weight")], output, transB=1)

    def linear(self, name: str, x: str, output: str = "") -> str:
        """Multiply rows x [n, inputs] by a matrix."""
        graph, tensor = self._graph, self._tensors[name]
        if isinstance(tensor, DenseTensor):
            return graph.op("MatMul", [x, self._dense(name, f"{name}.weight")], output)
        if tensor.zero_points is None:
            return self._blocks(name, tensor, x, output)
        product = self._blocks(name, tensor, x)
        # Each zero point counts once for every input of its block: times their sum.
        shape = np.array([-1, tensor.num_blocks, tensor.block_size])
        blocks = graph.op("Reshape", [x, graph.constant(f"blocks.{tensor.num_blocks}", shape)])
        sums = graph.op("ReduceSum", [blocks, graph.constant("last_axis", np.array([-1]))], keepdims=0)
        place = (tensor.num_blocks, tensor.shape[0]), tensor.zero_points
        zero_points = self._cast(self._file(f"{name}.zero_points", FLOAT, *place), FLOAT)
        return graph.op("Gemm", [sums, zero_points, product], output)

    def _blocks(self, name: str, tensor: BlockTensor, x: str, output: str = "") -> str:
        shape = (tensor.shape[0], tensor.num_blocks, tensor.value_bytes)
        values = self._file(f"{name}.values", "uint8", shape, tensor.values)
        return self._graph.op(
            "MatMulNBits", [x, values, self._scales(name, tensor)], output, domain=CONTRIB,
            N=tensor.shape[0], K=tensor.shape[1], bits=tensor.bits, block_size=tensor.block_size,
            **(_CPU_ATTRIBUTES if self._type == FLOAT else {}),
        )  # fmt: skip

    def _scales(self, name: str, tensor: BlockTensor) -> str:
        shape = (tensor.shape[0], tensor.num_blocks)
        return self._cast(self._file(f"{name}.scales", FLOAT, shape, tensor.scales), FLOAT)

    def _dense(self, name: str, constant: str) -> str:
        tensor = self._tensors[name]
        if not isinstance(tensor, DenseTensor):
            raise TypeError(f"The tensor {name} is in blocks.")
        return self._cast(self._file(constant, tensor.type, tensor.shape, tensor.offset), tensor.type)

    def _file(self, name: str, kind: str, shape: tuple[int, ...], offset: int) -> str:
        return self._graph.stored(name, kind, shape, WEIGHTS_FILE, offset)

    def _cast(self, value: str, kind: str) -> str:
        """Return a value of the type `kind` in the type that the graph computes in."""
        return value if kind == self._type else self._graph.op("Cast", [value], to=_ONNX_TYPES[self._type])
