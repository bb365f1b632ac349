"""Weights from a 4-bit file keep nearly all of their precision in 8 bits; others lose nothing."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.convert.quantize import BLOCK_SIZE, quantize_int8

Matrix = npt.NDArray[np.float32]


def plain_error(matrix: Matrix) -> float:
    """Return the squared error of rounding with the largest weight at ±127."""
    blocks = matrix.reshape(-1, BLOCK_SIZE)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    return float(np.square(np.rint(blocks / scales) * scales - blocks).sum())


def error(matrix: Matrix) -> float:
    return float(np.square(quantize_int8(matrix).dequantize() - matrix).sum())


def four_bit_matrix(seed: int) -> Matrix:
    """Return weights as a Q4_1 file holds them: 16 levels a block, step and offset of its own."""
    random = np.random.default_rng(seed)
    levels = random.integers(0, 16, (64, 8, BLOCK_SIZE))
    step = random.uniform(0.01, 0.1, (64, 8, 1)).astype(np.float16).astype(np.float32)
    offset = (-step * random.uniform(5, 10, (64, 8, 1))).astype(np.float16).astype(np.float32)
    return (levels * step + offset).astype(np.float32).reshape(64, -1)


@pytest.mark.parametrize("seed", range(3))
def test_four_bit_weights_are_met_far_better_than_by_plain_rounding(seed: int) -> None:
    matrix = four_bit_matrix(seed)
    assert error(matrix) < 0.3 * plain_error(matrix)


def test_symmetric_four_bit_weights_are_met_exactly() -> None:
    levels = np.random.default_rng(1).integers(-8, 8, (16, 4, BLOCK_SIZE)).astype(np.float32)
    matrix = (levels * np.float32(0.0625)).reshape(16, -1)
    np.testing.assert_allclose(quantize_int8(matrix).dequantize(), matrix, atol=1e-6)


def test_ordinary_weights_are_rounded_plainly() -> None:
    matrix = np.random.default_rng(2).standard_normal((32, 128)).astype(np.float32)
    assert error(matrix) == pytest.approx(plain_error(matrix), rel=1e-5)


@given(
    hnp.arrays(np.float32, (2, BLOCK_SIZE), elements=st.floats(-100, 100, width=32, allow_subnormal=False))
)
def test_no_block_is_rounded_worse_and_none_overflows(matrix: Matrix) -> None:
    packed = quantize_int8(matrix)
    assert packed.values.min() >= 1
    assert np.isfinite(packed.scales).all()
    largest = np.abs(matrix).max(axis=1)
    assert (np.abs(packed.dequantize() - matrix).max(axis=1) <= largest / 127 * 0.51 + 1e-30).all() or (
        error(matrix) <= plain_error(matrix) * 1.001 + 1e-12
    )


def test_inputs_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="33 inputs are not a multiple"):
        quantize_int8(np.zeros((2, 33), np.float32))
