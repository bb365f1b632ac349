"""Block quantisation: its bytes mean to ONNX Runtime what `dequantize` says, and rounding is bounded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.convert.quantize import BLOCK_SIZE, BlockQuantized, quantize, stack
from engine.convert.source import FloatArray


def random_matrix(rows: int, columns: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def run_node(
    kind: str, x: npt.NDArray[np.generic], packed: BlockQuantized, accuracy_level: int
) -> FloatArray:
    """Multiply by, or look rows up in, a quantised matrix with the operators that the decoder uses."""
    rows, columns = packed.shape
    lookup = kind == "GatherBlockQuantized"
    attributes = (
        {"bits": 8, "block_size": BLOCK_SIZE, "gather_axis": 0, "quantize_axis": 1}
        if lookup
        else {
            "N": rows,
            "K": columns,
            "bits": packed.bits,
            "block_size": BLOCK_SIZE,
            "accuracy_level": accuracy_level,
        }
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


BITS = pytest.mark.parametrize("bits", [4, 8])


@BITS
def test_onnx_runtime_multiplies_by_the_dequantized_matrix(bits: int) -> None:
    packed, x = quantize(random_matrix(48, 96), bits), random_matrix(5, 96, seed=1)
    exact = x.astype(np.float64) @ packed.dequantize().T.astype(np.float64)
    assert np.abs(run_node("MatMulNBits", x, packed, accuracy_level=1) - exact).max() < 1e-4
    # The level in use rounds the activations to 8 bits too.
    assert np.abs(run_node("MatMulNBits", x, packed, accuracy_level=4) - exact).max() < 0.02 * exact.std() * 3


def test_onnx_runtime_looks_the_same_rows_up() -> None:
    packed = quantize(random_matrix(48, 96), 8)
    ids = np.array([47, 0, 7, 7], np.int64)
    rows = run_node("GatherBlockQuantized", ids, packed, accuracy_level=0)
    np.testing.assert_array_equal(rows, packed.dequantize()[ids])


@BITS
def test_each_weight_is_within_half_a_step(bits: int) -> None:
    matrix = random_matrix(64, 256)
    matrix[3, 32:64] *= 1e-6
    matrix[4, 32:64] *= 1e6
    packed = quantize(matrix, bits)
    steps = np.abs(packed.scales[..., None].repeat(BLOCK_SIZE, axis=-1).reshape(matrix.shape))
    # In 4 bits the side opposite the largest weight has a level less.
    bound = steps / 2 if bits == 8 else steps
    assert (np.abs(packed.dequantize() - matrix) <= bound * 1.001).all()
    largest = np.abs(matrix.reshape(64, -1, BLOCK_SIZE)).max(axis=-1)
    np.testing.assert_allclose(np.abs(packed.scales), largest / (127 if bits == 8 else 8), rtol=1e-6)


@BITS
def test_blocks_are_independent(bits: int) -> None:
    matrix = random_matrix(4, 128)
    before = quantize(matrix, bits)
    matrix[2, 64:96] *= 100
    after = quantize(matrix, bits)
    changed = (before.values != after.values).any(axis=-1) | (before.scales != after.scales)
    assert {tuple(place) for place in np.argwhere(changed)} == {(2, 2)}


@BITS
def test_many_rows_are_rounded_as_one_by_one(bits: int) -> None:
    matrix = random_matrix(2500, 32)
    whole = quantize(matrix, bits)
    for row in (0, 1023, 1024, 2047, 2048, 2499):
        one = quantize(matrix[row : row + 1], bits)
        np.testing.assert_array_equal(one.values[0], whole.values[row])
        np.testing.assert_array_equal(one.scales[0], whole.scales[row])


@BITS
def test_shapes_and_types_are_what_the_operators_take(bits: int) -> None:
    packed = quantize(random_matrix(6, 64), bits)
    assert packed.values.shape == (6, 2, BLOCK_SIZE * bits // 8)
    assert packed.values.dtype == np.uint8
    assert packed.scales.shape == (6, 2)
    assert packed.scales.dtype == np.float32


@BITS
def test_zeros_stay_zeros(bits: int) -> None:
    packed = quantize(np.zeros((2, 64), np.float32), bits)
    assert np.isfinite(packed.scales).all()
    assert not packed.dequantize().any()


@BITS
@pytest.mark.parametrize("columns", [1, 31, 33, 48])
def test_inputs_that_are_no_whole_blocks_are_refused(columns: int, bits: int) -> None:
    with pytest.raises(ValueError, match=f"{columns} inputs are not a multiple"):
        quantize(random_matrix(2, columns), bits)


def with_zero_points(packed: BlockQuantized) -> BlockQuantized:
    rows, num_blocks = packed.scales.shape
    zero_points = random_matrix(rows, num_blocks, seed=7)
    return BlockQuantized(packed.bits, packed.values, packed.scales, zero_points)


def test_a_wider_matrix_is_the_same() -> None:
    packed = with_zero_points(quantize(random_matrix(8, 64), 4))
    assert packed.widened().bits == 8
    np.testing.assert_array_equal(packed.widened().dequantize(), packed.dequantize())


def test_zero_points_count_once_for_every_weight_of_a_block() -> None:
    plain = quantize(random_matrix(8, 64), 8)
    packed = with_zero_points(plain)
    assert packed.zero_points is not None
    difference = packed.dequantize() - plain.dequantize()
    np.testing.assert_allclose(difference, packed.zero_points.repeat(BLOCK_SIZE, axis=1), atol=1e-5)


def test_a_stack_is_the_matrices_one_below_the_other() -> None:
    four, eight = quantize(random_matrix(8, 64), 4), quantize(random_matrix(4, 64, seed=1), 8)
    assert stack([four, four]).bits == 4
    for parts in ([four, four], [four, eight], [with_zero_points(four), eight], [eight]):
        expected = np.concatenate([part.dequantize() for part in parts])
        np.testing.assert_array_equal(stack(parts).dequantize(), expected)
    assert stack([four, eight]).zero_points is None
