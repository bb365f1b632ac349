"""`SlotAttention` against float64, against ONNX Runtime's own attention, and itself in other pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from tests.engine.kernels.operators import Array, Heads, SlotCache, choices, choose, norm_of

pytestmark = pytest.mark.skipif(not choices(), reason="There are no operators of ours here.")

MAX_LEN = 1100
KINDS = {
    "grouped": Heads(9, 3, 64),
    "one each": Heads(4, 4, 16),
    "window": Heads(4, 1, 256, window=100),
    "softcap": Heads(8, 2, 80, softcap=30.0),
    "scale": Heads(6, 2, 96, window=33, scale=0.3),
    "wide": Heads(4, 2, 128),
}
OTHERS = {
    "normed": Heads(4, 2, 32, is_normed=True),
    "partly rotated": Heads(4, 2, 48, rotary_dim=16),
    "three inputs": Heads(4, 2, 32, is_packed=False, is_normed=True),
}


@pytest.fixture(scope="module", autouse=True, params=choices())
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    yield from choose(request.param, for_attention=True)


def rows_of(heads: Heads, num: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((num, heads.width)).astype(np.float32)


def reference(heads: Heads, rows: Array) -> npt.NDArray[np.float64]:
    """Return what one sequence of rows attends to, in float64."""
    num = len(rows)
    sizes = np.cumsum([heads.num * heads.dim, heads.num_kv * heads.dim])
    q, k, v = (part.reshape(num, -1, heads.dim) for part in np.split(rows.astype(np.float64), sizes, axis=1))
    if heads.is_normed:
        q, k = (
            x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * norm_of(name, heads.dim)
            for x, name in ((q, "q_norm"), (k, "k_norm"))
        )
    half = (heads.rotary_dim or heads.dim) // 2
    angles = np.arange(num)[:, None, None] / 10000 ** (np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)

    def rotated(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)

    q, k = rotated(q), rotated(k)
    k, v = (np.repeat(x, heads.num // heads.num_kv, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) * (heads.scale or heads.dim**-0.5)
    if heads.softcap:
        scores = np.tanh(scores / heads.softcap) * heads.softcap
    behind = np.arange(num)[:, None] - np.arange(num)[None]
    seen = (behind >= 0) & (behind < (heads.window or num))
    weights = np.exp(np.where(seen, scores - scores.max(axis=-1, keepdims=True), -np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    attended: npt.NDArray[np.float64] = np.einsum("hqk,khd->qhd", weights, v)
    return attended.reshape(num, -1)


@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
@pytest.mark.parametrize("is_half", [False, True], ids=["single", "half"])
def test_it_attends_as_the_formula_says_in_whatever_pieces(name: str, is_half: bool) -> None:
    heads = (KINDS | OTHERS)[name]
    rows = rows_of(heads, 700)
    whole = SlotCache(heads, num_slots=1, max_len=MAX_LEN, is_half=is_half)
    attended = whole.run(rows, [700])
    assert np.abs(attended - reference(heads, rows)).max() < (3e-3 if is_half else 1e-5)
    pieces = SlotCache(heads, num_slots=3, max_len=MAX_LEN, is_half=is_half)
    at, parts = 0, []
    for num in (1, 5, 64, 63, 130, 1, 1, 200, 235):
        parts.append(pieces.run(rows[at : at + num], [at + num], first_slot=1))
        at += num
    assert np.array_equal(np.concatenate(parts), attended)
    assert np.array_equal(pieces.keys[1], whole.keys[0])
    assert np.array_equal(pieces.values[1], whole.values[0])


@pytest.mark.parametrize("name", KINDS)
def test_it_is_what_onnx_runtime_computes(name: str) -> None:
    heads = KINDS[name]
    ours = SlotCache(heads, num_slots=1, max_len=MAX_LEN)
    theirs = SlotCache(heads, num_slots=1, max_len=MAX_LEN, is_ours=False)
    for num, total in ((300, 300), (1, 301), (40, 341)):
        rows = rows_of(heads, num, seed=total)
        expected = theirs.run(rows, [total])
        assert np.abs(ours.run(rows, [total]) - expected).max() < 1e-5 * np.abs(expected).max()


def test_sequences_beside_each_other_do_not_meet() -> None:
    heads = KINDS["grouped"]
    together = SlotCache(heads, num_slots=4, max_len=MAX_LEN)
    together.keys[:] = np.random.default_rng(1).standard_normal(together.keys.shape)
    together.values[:] = np.random.default_rng(2).standard_normal(together.values.shape)
    totals, length = [1050, 300, 17, 64], 5  # long enough that one alone is cut into segments
    apart = SlotCache(heads, num_slots=4, max_len=MAX_LEN)
    apart.keys[:], apart.values[:] = together.keys, together.values
    rows = rows_of(heads, 4 * length)
    attended = together.run(rows, totals)
    for slot, total in enumerate(totals):
        part = slice(slot * length, (slot + 1) * length)
        assert np.array_equal(apart.run(rows[part], [total], first_slot=slot), attended[part])
    assert np.array_equal(apart.keys, together.keys)


def test_what_lies_behind_a_sequence_is_never_read() -> None:
    heads = KINDS["grouped"]
    clean, dirty = (SlotCache(heads, num_slots=2, max_len=MAX_LEN) for _ in range(2))
    dirty.keys[:], dirty.values[:] = np.nan, np.nan
    rows = rows_of(heads, 130)
    assert np.array_equal(dirty.run(rows, [130], first_slot=1), clean.run(rows, [130], first_slot=1))
    assert np.isnan(dirty.keys[0]).all()


def test_half_precision_is_what_the_cache_holds_and_bears_what_is_too_large_for_it() -> None:
    heads = KINDS["one each"]
    half, single = (
        SlotCache(heads, num_slots=1, max_len=MAX_LEN, is_half=is_half) for is_half in (True, False)
    )
    rows = rows_of(heads, 90)
    half.run(rows, [90])
    single.run(rows, [90])
    assert np.array_equal(half.keys, single.keys.astype(np.float16))
    assert np.array_equal(half.values, single.values.astype(np.float16))
    rows[3, -1], rows[4, -1] = 1e9, -1e9
    attended = half.run(rows, [180])
    assert np.isfinite(attended).all()
    assert half.values[0, -1, 93, -1] == -half.values[0, -1, 94, -1] == np.finfo(np.float16).max
    rows[5, -1] = np.nan
    assert np.isnan(half.run(rows, [270])).any()


@pytest.mark.parametrize("totals", [[0], [MAX_LEN + 1], [1, 2], [-5], []])
def test_lengths_that_cannot_be_are_refused(totals: list[int]) -> None:
    heads = KINDS["one each"]
    cache = SlotCache(heads, num_slots=2, max_len=MAX_LEN)
    with pytest.raises(Exception, match="SlotAttention"):
        cache.run(rows_of(heads, 3), totals)


def test_a_cache_that_would_be_copied_is_refused() -> None:
    cache = SlotCache(KINDS["one each"], num_slots=1, max_len=MAX_LEN)
    with pytest.raises(Exception, match="same memory"):
        cache.run(rows_of(cache.heads, 1), [1], in_place=False)


def test_heads_of_another_size_are_refused() -> None:
    with pytest.raises(Exception, match="heads that it does not take"):
        SlotCache(Heads(2, 1, 24), num_slots=1, max_len=MAX_LEN)
