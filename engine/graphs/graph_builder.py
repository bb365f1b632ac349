"""Puts one ONNX graph together: nodes, initializers, and a converted model's tensors as constants of it.

A tensor in another type than the device computes in is cast: of a constant ONNX Runtime does so once, when it
loads. A tied head reads the embedding's bytes. Knows nothing of what the graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from engine import kernels
from engine.describing.layers import Activation
from engine.describing.manifest import WEIGHTS_FILE
from engine.describing.stored import BlockTensor, DenseTensor, StoredTensor

CONTRIB = "com.microsoft"
OURS = "llamacord"
"""The domain of the operator in engine/kernels."""
_OPSETS = {"": 21, CONTRIB: 1}
FLOAT, HALF = "float32", "float16"
_ONNX_TYPES = {FLOAT: TensorProto.FLOAT, HALF: TensorProto.FLOAT16}
_CPU_ATTRIBUTES = {"accuracy_level": 4}
"""Activations as int8. Without it 8-bit weights are 100 times slower on a CPU."""
_TILE = 16
"""Columns that our own operator computes together."""
_GATES = {Activation.SILU: 1, Activation.GELU_TANH: 2}


def is_ours(tensor: StoredTensor) -> TypeGuard[BlockTensor]:
    """Tell whether our own operator can multiply by a matrix (engine/kernels)."""
    return isinstance(tensor, BlockTensor) and tensor.block_size == kernels.BLOCK_SIZE


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

    def cast(self, value: str, kind: str, wanted: str) -> str:
        """Return a value of the type `kind` in another one."""
        return value if kind == wanted else self.op("Cast", [value], to=_ONNX_TYPES[wanted])

    def build(self, name: str, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> bytes:
        """Return the finished model, serialised."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._initializers.values()))
        ours = {OURS: 1} if any(node.domain == OURS for node in self._nodes) else {}
        opsets = [helper.make_opsetid(*opset) for opset in (_OPSETS | ours).items()]
        model: ModelProto = helper.make_model(
            graph, opset_imports=opsets, ir_version=10, producer_name="llamacord"
        )
        return bytes(model.SerializeToString())


class StoredWeights:
    """Adds tensors of `weights.bin` to a graph that computes in `FLOAT`, as the CPU, or in `HALF`.

    own_products: the file of the weights, where products in blocks are to be made by the operator of our own
    (engine/kernels) in the place of ONNX Runtime's.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        tensors: Mapping[str, StoredTensor],
        computes_in: str,
        own_products: Path | None = None,
    ) -> None:
        self._graph = graph
        self._tensors = tensors
        self._own_products = own_products
        self.type = computes_in

    def vector(self, name: str, kind: str = "") -> str:
        """Add a norm's weights or a bias and return their name; in the type `kind`, if it is another one."""
        tensor = self._tensors[name]
        if not isinstance(tensor, DenseTensor):
            raise TypeError(f"The vector {name} is in blocks.")
        stored = self._file(name, tensor.type, tensor.shape, tensor.offset)
        return self._graph.cast(stored, tensor.type, kind or self.type)

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
        """Multiply rows x [n, inputs] by a matrix, and add its bias if there is one."""
        graph, tensor = self._graph, self._tensors[name]
        if f"{name}_bias" in self._tensors:
            # An operator that adds it itself would keep a GPU from its fast products.
            product = self._product(name, tensor, x)
            return graph.op("Add", [product, self.vector(f"{name}_bias")], output)
        return self._product(name, tensor, x, output)

    def gated(self, name: str, x: str, activation: Activation) -> str | None:
        """Multiply rows x by a matrix of gates above one of as many others; return act(gates) * others.

        None where one operator cannot do all of it.
        """
        tensor = self._tensors[name]
        if f"{name}_bias" in self._tensors or not self._is_ours(tensor) or tensor.shape[0] % (2 * _TILE):
            return None
        return self._our_product(tensor, x, gated=_GATES[activation])

    def _is_ours(self, tensor: StoredTensor) -> TypeGuard[BlockTensor]:
        return self._own_products is not None and is_ours(tensor)

    def _our_product(self, tensor: BlockTensor, x: str, output: str = "", gated: int = 0) -> str:
        offsets = -1 if tensor.zero_points is None else tensor.zero_points
        return self._graph.op(
            "BlockLinear", [x], output, domain=OURS, file=str(self._own_products),
            n=tensor.shape[0], k=tensor.shape[1], bits=tensor.bits,
            values=tensor.values, scales=tensor.scales, offsets=offsets, gated=gated,
        )  # fmt: skip

    def _product(self, name: str, tensor: StoredTensor, x: str, output: str = "") -> str:
        graph = self._graph
        if isinstance(tensor, DenseTensor):
            return graph.op("MatMul", [x, self._dense(name, f"{name}.weight")], output)
        if self._is_ours(tensor):
            return self._our_product(tensor, x, output)
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
            **(_CPU_ATTRIBUTES if self.type == FLOAT else {}),
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
        return self._graph.cast(value, kind, self.type)
