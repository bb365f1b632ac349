"""Places by rank against a plain sort, on weights whose sums are exact in any order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.runtime.ranking import Ranking, Weights, bound, largest, reach_in_place

KINDS = ("few values", "all alike", "one value each", "one is all", "mostly zero", "steep", "tiny")
SIZES = st.sampled_from([1, 2, 7, 2047, 2048, 2049, 5000, 20_000])


def weights_of(kind: str, size: int, seed: int) -> Weights:
    """Return whole numbers, or such parts of a power of two: no sum of them is rounded."""
    random = np.random.default_rng(seed)
    if kind == "few values":
        values = random.integers(1, 4, size)
    elif kind == "all alike":
        values = np.full(size, random.integers(1, 1000))
    elif kind == "one value each":
        values = random.permutation(size) + 1
    elif kind == "one is all":
        values = np.where(np.arange(size) == random.integers(0, size), 2**24, 1)
    elif kind == "mostly zero":
        values = random.integers(1, 9, size) * (random.random(size) < 0.01)
    elif kind == "steep":
        values = 2 ** random.integers(0, 24, size)
    else:
        return random.integers(1, 1 << 20, size, np.int32).view(np.float32)  # denormal numbers
    values[random.integers(0, size)] += 1
    return values.astype(np.float32)


def naive(weights: Weights, target: float) -> tuple[int, float]:
    order = np.lexsort((np.arange(len(weights)), -weights))
    sums = np.cumsum(weights[order], dtype=np.float64)
    at = int(np.argmax(sums > target)) if sums[-1] > target else int(np.argmax(sums == sums[-1]))
    return int(order[at]), float(sums[at])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), SIZES, st.integers(0, 2**32), st.floats(0.0, 1.2))
@example("all alike", 20_000, 0, 0.0)
@example("few values", 20_000, 0, 1.0 - 2**-53)
@example("mostly zero", 20_000, 0, 1.0)
def test_the_place_is_that_of_a_sort(kind: str, size: int, seed: int, share: float) -> None:
    weights = weights_of(kind, size, seed)
    ranking = Ranking(weights)
    assert ranking.total == weights.sum(dtype=np.float64)
    target = share * ranking.total
    assert ranking.reach(target) == naive(weights, target)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_passes_a_target_only_beyond_it(kind: str) -> None:
    weights = weights_of(kind, 3000, 1)
    order = np.lexsort((np.arange(len(weights)), -weights))
    sums = np.cumsum(weights[order], dtype=np.float64)
    ranking = Ranking(weights)
    for at in np.flatnonzero(weights[order][1:] > 0)[::100].tolist():
        assert ranking.reach(float(sums[at]))[0] == order[at + 1], "equal is not beyond"
        assert ranking.reach(float(np.nextafter(sums[at], 0)))[0] == order[at]


@settings(deadline=None)
@given(
    st.sampled_from([1, 5, 900, 1023, 1024, 1025, 5000, 40_000]),
    st.sampled_from([1, 2, 40, 512, 1000]),
    st.sampled_from([0.0, 0.01, 1.0, 1000.0]),
    st.integers(0, 2**32),
)
def test_the_bound_is_reached_by_as_many_and_few_more(
    size: int, number: int, spread: float, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)
    num_reaching = int((logits >= bound(logits, number)).sum())
    assert num_reaching >= min(number, size)
    if spread and size > 5000:
        assert num_reaching <= 1.5 * number + 10


@settings(deadline=None)
@given(st.sampled_from(KINDS), SIZES, st.sampled_from([1, 3, 40, 1000]), st.integers(0, 2**32))
def test_the_largest_are_the_first_of_a_sort(kind: str, size: int, number: int, seed: int) -> None:
    weights = weights_of(kind, size, seed)
    expected: npt.NDArray[np.int64] = np.lexsort((np.arange(size), -weights))[:number]
    assert largest(weights, number).tolist() == expected.tolist()


@settings(deadline=None)
@given(
    st.sampled_from([1, 2, 8191, 8192, 8193, 30_000]),
    st.sampled_from([0.0, 1.0, 8.0]),
    st.floats(0.0, 1.0, exclude_max=True),
    st.integers(0, 2**32),
)
@example(30_000, 0.0, 0.0, 0)
@example(30_000, 1.0, 1.0 - 2**-53, 0)
def test_in_their_own_order_each_has_its_share(size: int, spread: float, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, size).astype(np.float32)
    logits[random.random(size) < 0.3] = -np.inf
    logits[random.integers(0, size)] = 0.0
    sums = np.cumsum(np.exp(logits.astype(np.float64)))
    place = reach_in_place(logits, share)
    assert np.isfinite(logits[place])
    before = sums[place - 1] if place else 0.0
    assert before * (1 - 1e-12) <= share * sums[-1] <= sums[place] * (1 + 1e-12)
