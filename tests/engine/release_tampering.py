"""Ways to change an exported graph: what the import has to refuse, and one that it must not notice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from tests.engine.releases import node

Change = Callable[[onnx.ModelProto], None]


def rename_everything(model: onnx.ModelProto) -> None:
    """Give every value between inputs and outputs a name that says nothing, in an order that says nothing."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    values = {name for part in model.graph.node for name in part.output}
    values |= {tensor.name for tensor in model.graph.initializer}
    numbers = np.random.default_rng(0).permutation(len(values))
    new = {name: f"v{number}" for name, number in zip(sorted(values - kept), numbers, strict=False)}
    for index, part in enumerate(model.graph.node):
        part.name = f"n{index}"
        for field in (part.input, part.output):
            field[:] = [new.get(name, name) for name in field]
    for tensor in model.graph.initializer:
        tensor.name = new[tensor.name]


def exchange_gate_and_up(model: onnx.ModelProto) -> None:
    gate, up = (node(model, f"/transformer/block_list.1/proj/{part}/MatMul") for part in ("gate", "up"))
    gate.input[1], up.input[1] = up.input[1], gate.input[1]


def exchange_what_the_sigmoid_takes(model: onnx.ModelProto) -> None:
    gate, up = (node(model, f"/transformer/block_list.0/proj/{part}/MatMul") for part in ("gate", "up"))
    gate.output[0], up.output[0] = up.output[0], gate.output[0]


def exchange_two_layers_matrices(model: onnx.ModelProto) -> None:
    first, second = (node(model, f"/transformer/block_list.{i}/proj/down/MatMul") for i in (0, 1))
    first.input[1], second.input[1] = second.input[1], first.input[1]


def transpose_a_matrix(model: onnx.ModelProto) -> None:
    name = node(model, "/transformer/block_list.1/proj/down/MatMul").input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.dims[:] = reversed(tensor.dims)


def transpose_by_a_node(model: onnx.ModelProto) -> None:
    product = node(model, "/transformer/block_list.1/attention/output/MatMul")
    turned = onnx.helper.make_node("Transpose", [product.input[1]], ["turned"], perm=[1, 0])
    product.input[1] = "turned"
    model.graph.node.insert(0, turned)


def set_constant(model: onnx.ModelProto, name: str, value: float) -> None:
    tensor = node(model, name).attribute[0].t
    tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float32)))


def change_an_eps(model: onnx.ModelProto) -> None:
    set_constant(model, "/transformer/block_list.1/attn_norm/Constant_1", 1e-3)


def change_a_power(model: onnx.ModelProto) -> None:
    set_constant(model, "/transformer/block_list.1/proj_norm/Constant", 4.0)


def sum_instead_of_mean(model: onnx.ModelProto) -> None:
    node(model, "/transformer/block_list.0/proj_norm/ReduceMean").op_type = "ReduceSum"


def leave_a_norm_out(model: onnx.ModelProto) -> None:
    for part in ("query", "key", "value"):
        product = node(model, f"/transformer/block_list.1/attention/{part}/MatMul")
        product.input[0] = "/transformer/block_list.0/Add_1_output_0"


def norm_after_the_sum(model: onnx.ModelProto) -> None:
    total = node(model, "/transformer/block_list.1/Add_1")
    total.input[0] = "/transformer/block_list.1/proj_norm/Mul_1_output_0"


def take_the_sigmoid_out(model: onnx.ModelProto) -> None:
    node(model, "/transformer/block_list.0/proj/Sigmoid").op_type = "Tanh"


def leave_a_layer_out(model: onnx.ModelProto) -> None:
    node(model, "/Gather").input[0] = "/transformer/block_list.0/Add_1_output_0"


def scale_the_scores(model: onnx.ModelProto) -> None:
    for part in model.graph.node:
        if part.op_type == "Softmax":
            behind = onnx.helper.make_node("Mul", [part.input[0], "three"], [f"{part.name}.scaled"])
            part.input[0] = f"{part.name}.scaled"
            model.graph.node.append(behind)
    model.graph.initializer.append(numpy_helper.from_array(np.array(3.0, np.float32), "three"))
    order(model)


def order(model: onnx.ModelProto) -> None:
    """Put the nodes where what they take is there already."""
    there = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    waiting = list(model.graph.node)
    del model.graph.node[:]
    while waiting:
        ready = [part for part in waiting if there.issuperset(part.input)]
        model.graph.node.extend(ready)
        there.update(name for part in ready for name in part.output)
        waiting = [part for part in waiting if part not in ready]


TAMPERED = {
    "gate and up exchanged": (exchange_gate_and_up, "weights were exchanged"),
    "the sigmoid on the other side": (exchange_what_the_sigmoid_takes, "weights were exchanged"),
    "two layers' matrices exchanged": (exchange_two_layers_matrices, "weights were exchanged"),
    "a transposed matrix": (transpose_a_matrix, "weights were exchanged"),
    "a matrix transposed by a node": (transpose_by_a_node, "weights were exchanged"),
    "another eps": (change_an_eps, "differ in their epsilon"),
    "a norm of another power": (change_a_power, "second norm of layer 1 is no root mean square norm"),
    "a norm without mean": (sum_instead_of_mean, "second norm of layer 0 is no root mean square norm"),
    "no norm": (leave_a_norm_out, "first norm of layer 1 is no root mean square norm"),
    "a norm elsewhere": (norm_after_the_sum, "norms of layer 1 are not where|layer 1"),
    "no sigmoid": (take_the_sigmoid_out, "feed-forward part of layer 0"),
    "a layer less": (leave_a_layer_out, "graph is not one that can be converted"),
    "sharper attention": (scale_the_scores, "does not say what the released one says"),
}
