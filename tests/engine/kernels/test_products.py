"""`BlockLinear` against float64 and against ONNX Runtime's own product in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.kernels.operators import Array, Blocks, choices, choose, our_product, their_product

pytestmark = pytest.mark.skipif(not choices(), reason="There are no operators of ours here.")

ROWS = (1, 2, 3, 4, 7, 8, 10, 11, 16, 25, 40, 64, 77)
"""One group, several, and from 64 on, or with many outputs, pairs of tiles."""


@pytest.fixture(scope="module", autouse=True, params=choices())
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    yield from choose(request.param)


def rows_of(num: int, k: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((num, k)).astype(np.float32)


def quantised(rows: Array) -> npt.NDArray[np.float64]:
    """Return rows as they are multiplied: in blocks of 32 with 8 bits."""
    blocks = rows.reshape(len(rows), -1, 32).astype(np.float64)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    whole: npt.NDArray[np.float64] = np.rint(blocks / np.where(scales == 0, 1, scales)) * scales
    return whole.reshape(rows.shape)


@pytest.mark.parametrize("is_half", [True, False], ids=["half", "single"])
@pytest.mark.parametrize("has_offsets", [False, True], ids=["plain", "offsets"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "k"), [(16, 32), (48, 288), (37, 64), (1, 32), (515, 1056), (2060, 32)])
def test_it_is_the_product_of_what_is_stored(
    tmp_path: Path, n: int, k: int, bits: int, has_offsets: bool, is_half: bool
) -> None:
    rng = np.random.default_rng(n + k)
    matrix = Blocks.random(rng, n, k, bits, has_offsets=has_offsets, is_half=is_half)
    product = our_product(matrix, tmp_path / "weights.bin")
    rows = rows_of(max(ROWS), k)
    expected = quantised(rows) @ matrix.dense.T
    tolerance = 3e-3 * np.abs(expected).max()  # a value in the middle between two may be rounded either way
    alone = np.concatenate([product.run(None, {"x": row[None]})[0] for row in rows])
    assert np.abs(alone - expected).max() < tolerance
    for num in ROWS:
        # Bit for bit, whatever else is multiplied at the same time.
        assert np.array_equal(product.run(None, {"x": rows[:num]})[0], alone[:num])
        assert np.array_equal(product.run(None, {"x": rows[-num:]})[0], alone[-num:])


@pytest.mark.parametrize("bits", [4, 8])
def test_it_rounds_no_more_than_the_product_of_onnx_runtime(tmp_path: Path, bits: int) -> None:
    matrix = Blocks.random(np.random.default_rng(0), 96, 576, bits, has_offsets=False)
    rows = rows_of(9, 576)
    ours = our_product(matrix, tmp_path / "weights.bin").run(None, {"x": rows})[0]
    theirs = their_product(matrix).run(None, {"x": rows})[0]
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", [1, 2], ids=["silu", "gelu"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_gate_is_applied(tmp_path: Path, bits: int, kind: int) -> None:
    matrix = Blocks.random(np.random.default_rng(3), 128, 96, bits, has_offsets=True)
    rows = 3 * rows_of(77, 96)
    both = our_product(matrix, tmp_path / "both.bin").run(None, {"x": rows})[0].astype(np.float64)
    gate, up = np.split(both, 2, axis=1)
    if kind == 1:
        expected = gate / (1 + np.exp(-gate)) * up
    else:
        inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
        expected = 0.5 * gate * (1 + np.tanh(inner)) * up
    gated = our_product(matrix, tmp_path / "gated.bin", gated=kind).run(None, {"x": rows})[0]
    assert gated.shape == expected.shape
    assert np.abs(gated - expected).max() < 2e-6 * np.abs(expected).max()


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_numbers_are_taken_and_what_is_no_number_stays_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    matrix = Blocks.random(np.random.default_rng(5), 32, 64, 4, has_offsets=True)
    product = our_product(matrix, tmp_path_factory.mktemp("weights") / "weights.bin")
    value = st.one_of(
        st.floats(width=32), st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 3.4e38, np.nan, np.inf, -np.inf])
    )
    rows = rows_of(3, 64)
    places = data.draw(st.lists(st.tuples(st.integers(0, 63), value), max_size=6))
    for place, number in places:
        rows[1, place] = number
    result = product.run(None, {"x": rows})[0]
    alone = product.run(None, {"x": rows[:1]})[0]
    assert np.array_equal(result[:1], alone)  # what is in one row does not reach another
    if not np.isfinite(rows[1]).all():
        assert not np.isfinite(result[1]).any()


def test_no_rows_give_no_rows(tmp_path: Path) -> None:
    matrix = Blocks.random(np.random.default_rng(0), 16, 32, 4, has_offsets=False)
    product = our_product(matrix, tmp_path / "weights.bin")
    assert product.run(None, {"x": np.empty((0, 32), np.float32)})[0].shape == (0, 16)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    matrix = Blocks.random(np.random.default_rng(0), 16, 64, 4, has_offsets=True)
    path = tmp_path / "weights.bin"
    with pytest.raises(Exception, match="another width"):
        our_product(matrix, path).run(None, {"x": np.zeros((1, 32), np.float32)})
    for changes in ({"k": 48}, {"n": 0}, {"bits": 3}, {"gated": 3}, {"gated": 1}, {"n": -16}):
        with pytest.raises(Exception, match="does not take"):
            our_product(matrix, path, **changes)
    with pytest.raises(Exception, match="too short"):
        our_product(matrix, path, n=4096)
    with pytest.raises(Exception, match="cannot be opened"):
        our_product(matrix, path, file=str(tmp_path / "elsewhere.bin"))
