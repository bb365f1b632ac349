"""A graph of one node that reads a tensor and writes another of its size, to measure how fast memory is."""

from __future__ import annotations

import numpy as np
from onnx import helper


def copy_graph(kind: type[np.generic]) -> bytes:
    """Return the graph: `copied` [n] is `values` [n] with the other sign."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    values = [helper.make_tensor_value_info(name, element, ["n"]) for name in ("values", "copied")]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["values"], ["copied"])], "copy", values[:1], values[1:]
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="llamacord")
    data: bytes = model.SerializeToString()
    return data
