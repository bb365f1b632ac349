"""Block quantisation: its bytes mean to ONNX Runtime what `dequantize` says, and rounding is bounded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.convert.quantize import BLOCK_SIZE, BlockQuantized, quantize_int8
from engine.convert.source import FloatArray


def random_matrix(rows: int, columns: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def run_node(
    kind: str, x: npt.NDArray[np.generic], packed: BlockQuantized, accuracy_level: int
) -> FloatArray:
    """Multiply by, or look rows up in, a quantised matrix with the operators that the decoder uses."""
    rows, columns = packed.scales.shape[0], packed.scales.shape[1] * BLOCK_SIZE
    lookup = kind == "GatherBlockQuantized"
    attributes = (
        {"bits": 8, "block_size": BLOCK_SIZE, "gather_axis": 0, "quantize_axis": 1}
        if lookup
        else {"N": rows, "K": columns, "bits": 8, "block_size": BLOCK_SIZE, "accuracy_level": accuracy_level}
    )
    values = packed.values.reshape(rows, columns) if lookup else packed.values
    inputs = ["values", "x", "scales"] if lookup else ["x", "values", "scales"]
    kind_of_x = TensorProto.INT64 if lookup else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, ["y"], domain="com.microsoft", **attributes)],
        "one_node",
        [helper.make_tensor_value_info("x", kind_of_x, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, "values"), numpy_helper.from_array(packed.scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: FloatArray = session.run(None, {"x": x})[0]
    return result


def test_onnx_runtime_multiplies_by_the_dequantized_matrix() -> None:
    packed, x = quantize_int8(random_matrix(48, 96)), random_matrix(5, 96, seed=1)
    exact = x.astype(np.float64) @ packed.dequantize().T.astype(np.float64)
    assert np.abs(run_node("MatMulNBits", x, packed, accuracy_level=1) - exact).max() < 1e-4
    # The level in use rounds the activations to 8 bits too.
    assert np.abs(run_node("MatMulNBits", x, packed, accuracy_level=4) - exact).max() < 0.02 * exact.std() * 3


def test_onnx_runtime_looks_the_same_rows_up() -> None:
    packed = quantize_int8(random_matrix(48, 96))
    ids = np.array([47, 0, 7, 7], np.int64)
    rows = run_node("GatherBlockQuantized", ids, packed, accuracy_level=0)
    np.testing.assert_array_equal(rows, packed.dequantize()[ids])


def test_each_weight_is_within_half_a_step() -> None:
    matrix = random_matrix(64, 256)
    matrix[3, 32:64] *= 1e-6
    matrix[4, 32:64] *= 1e6
    packed = quantize_int8(matrix)
    half_a_step = packed.scales[..., None].repeat(BLOCK_SIZE, axis=-1).reshape(matrix.shape) / 2
    assert (np.abs(packed.dequantize() - matrix) <= half_a_step * 1.001).all()
    largest = np.abs(matrix.reshape(64, -1, BLOCK_SIZE)).max(axis=-1)
    assert (packed.scales >= largest / 127 * 0.9999).all()


def test_blocks_are_independent() -> None:
    matrix = random_matrix(4, 128)
    before = quantize_int8(matrix)
    matrix[2, 64:96] *= 100
    after = quantize_int8(matrix)
    changed = (before.values != after.values).any(axis=-1) | (before.scales != after.scales)
    assert {tuple(place) for place in np.argwhere(changed)} == {(2, 2)}


def test_shapes_and_types_are_what_the_operators_take() -> None:
    packed = quantize_int8(random_matrix(6, 64))
    assert packed.values.shape == (6, 2, BLOCK_SIZE)
    assert packed.values.dtype == np.uint8
    assert packed.scales.shape == (6, 2)
    assert packed.scales.dtype == np.float32


def test_zeros_stay_zeros() -> None:
    packed = quantize_int8(np.zeros((2, 64), np.float32))
    assert np.isfinite(packed.scales).all()
    assert not packed.dequantize().any()


@pytest.mark.parametrize("columns", [1, 31, 33, 48])
def test_inputs_that_are_no_whole_blocks_are_refused(columns: int) -> None:
    with pytest.raises(ValueError, match=f"{columns} inputs are not a multiple"):
        quantize_int8(random_matrix(2, columns))
