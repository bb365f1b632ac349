"""A graph of one node that replaces one row of the table of seen tokens on a device."""

from __future__ import annotations

from onnx import TensorProto, helper


def seen_graph() -> bytes:
    """Return the graph: `row` bool [1, vocab] takes row `seat` int64 [1, 1] of `seen` bool [seats, vocab].

    `seen_out` is bound to the memory of `seen`.
    """
    values = [
        helper.make_tensor_value_info("seen", TensorProto.BOOL, ["num_seats", "vocab"]),
        helper.make_tensor_value_info("seat", TensorProto.INT64, [1, 1]),
        helper.make_tensor_value_info("row", TensorProto.BOOL, [1, "vocab"]),
    ]
    output = helper.make_tensor_value_info("seen_out", TensorProto.BOOL, ["num_seats", "vocab"])
    node = helper.make_node("ScatterND", ["seen", "seat", "row"], ["seen_out"])
    graph = helper.make_graph([node], "seen", values, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())
