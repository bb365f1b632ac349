"""The sampler against a plain float64 reading of its rules, driven by the same uniform numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from engine.errors import GenerationFailedError
from engine.runtime.sampling import FloatArray, Sampler
from engine.types import SamplingParams

Float64Array = npt.NDArray[np.float64]

NEAR = 1e-4
"""Closer than this to a border, float32 and float64 may fall on different sides."""

OFF = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
LOGITS = st.lists(st.integers(-60, 60).map(lambda tenths: tenths / 10), min_size=1, max_size=24)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.001, 0.3, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.01, 0.3, 0.77, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 23, 1000]),
    min_p=st.sampled_from([0.0, 0.013, 0.21, 1.0]),
    repetition_penalty=st.just(1.0),
    seed=st.integers(0, 2**63 - 1),
)


class FixedRandom:
    """A random generator that always draws the same number."""

    def __init__(self, uniform: float) -> None:
        self._uniform = uniform

    def random(self) -> float:
        return self._uniform


class BorderError(Exception):
    """The case lies on a border where rounding decides."""


def uniforms(seed: int | None, number: int) -> Float64Array:
    """Return the uniform numbers that a request with this seed draws."""
    return np.random.Generator(np.random.PCG64(seed)).random(number)


def penalised(logits: Float64Array, seen: Collection[int], penalty: float) -> Float64Array:
    """Divide positive and multiply negative logits of seen tokens."""
    return np.array(
        [
            value if token not in seen else value / penalty if value > 0 else value * penalty
            for token, value in enumerate(logits)
        ]
    )


def distribution(
    logits: Float64Array, params: SamplingParams, near: float = NEAR
) -> tuple[list[int], Float64Array]:
    """Return the allowed tokens in the order in which they share out the unit interval, and their shares."""
    scaled = logits / params.temperature
    weights = np.exp(scaled - scaled.max())
    probabilities = weights / weights.sum()
    if (params.top_k, params.top_p, params.min_p) == (0, 1.0, 0.0):
        return list(range(len(logits))), probabilities
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    order = order[: params.top_k or None]
    kept = probabilities[order] / probabilities[order].sum()
    before = np.concatenate([[0.0], np.cumsum(kept)[:-1]])
    if params.top_p < 1.0 and np.abs(before - params.top_p).min() < near:
        raise BorderError
    order = [
        token for token, mass in zip(order, before, strict=True) if params.top_p == 1.0 or mass < params.top_p
    ]
    ratios = probabilities[order] / probabilities[order[0]]
    if 0 < params.min_p < 1 and np.abs(ratios / params.min_p - 1).min() < near:
        raise BorderError
    order = [token for token, ratio in zip(order, ratios, strict=True) if ratio >= params.min_p - 1e-12]
    return order, probabilities[order] / probabilities[order].sum()


def choose(order: Sequence[int], shares: Float64Array, uniform: float) -> int:
    """Return the token in whose part of the unit interval `uniform` lies."""
    edges = np.cumsum(shares)
    if len(edges) > 1 and np.abs(edges[:-1] - uniform).min() < NEAR:
        raise BorderError
    return order[min(int(np.searchsorted(edges, uniform, side="right")), len(order) - 1)]


def draws(sampler: Sampler, logits: Sequence[float], number: int) -> list[int]:
    return [sampler.sample(np.array(logits, np.float32)) for _ in range(number)]


@given(LOGITS, PARAMS)
@example([0.0] * 24, SamplingParams(1.0, 0.5, 5, 0.0, 1.0, seed=3))
@example([6.0, -6.0, -6.0], SamplingParams(0.3, 0.999, 0, 0.0, 1.0, seed=3))
@example([5.0] * 5 + [-6.0] * 19, SamplingParams(0.7, 1.0, 23, 0.0, 1.0, seed=3))
def test_draws_are_those_of_the_reference(logits: list[float], params: SamplingParams) -> None:
    exact = np.array(logits, np.float32).astype(np.float64)
    try:
        order, shares = distribution(exact, params)
    except BorderError:
        assume(False)
    sampled = draws(Sampler(params, []), logits, 48)
    for token, uniform in zip(sampled, uniforms(params.seed, 48), strict=True):
        assert token in order
        with contextlib.suppress(BorderError):
            assert token == choose(order, shares, uniform)


@given(
    LOGITS.filter(lambda logits: len(logits) > 5),
    st.sampled_from([0.5, 0.9, 1.1, 1.3, 2.0]),
    st.sets(st.integers(0, 5)),
    st.sets(st.integers(0, 5)),
)
def test_prompt_and_answer_are_penalised_but_exempt_tokens_never(
    logits: list[float], penalty: float, prompt: set[int], exempt: set[int]
) -> None:
    params = SamplingParams(1.0, 1.0, 0, 0.0, penalty, seed=11)
    sampler, seen = Sampler(params, prompt, exempt), prompt - exempt
    exact = np.array(logits, np.float32).astype(np.float64)
    for uniform in uniforms(11, 12):
        order, shares = distribution(penalised(exact, seen, penalty), params)
        token = sampler.sample(np.array(logits, np.float32))
        with contextlib.suppress(BorderError):
            assert token == choose(order, shares, uniform)
        seen |= {token} - exempt


@given(
    LOGITS.filter(lambda logits: len(logits) > 5),
    st.sampled_from([-2.0, -0.3, 0.0, 0.4, 2.0]),
    st.sampled_from([-2.0, 0.0, 0.7, 2.0]),
    st.sampled_from([1.0, 1.3]),
    st.sets(st.integers(0, 5)),
)
def test_frequency_and_presence_count_the_answer_alone(
    logits: list[float], frequency: float, presence: float, repetition: float, prompt: set[int]
) -> None:
    params = SamplingParams(
        1.0, 1.0, 0, 0.0, repetition, frequency_penalty=frequency, presence_penalty=presence, seed=7
    )
    sampler, came = Sampler(params, prompt, {2}), Counter[int]()
    exact = np.array(logits, np.float32).astype(np.float64)
    for uniform in uniforms(7, 12):
        lowered = penalised(exact, (prompt | came.keys()) - {2}, repetition)
        for token, count in came.items():
            if token != 2:
                lowered[token] -= count * frequency + (count > 0) * presence
        order, shares = distribution(lowered, params)
        token = sampler.sample(np.array(logits, np.float32))
        with contextlib.suppress(BorderError):
            assert token == choose(order, shares, uniform)
        came[token] += 1


def test_a_word_comes_back_as_often_as_its_lead_pays_for() -> None:
    greedy, logits = SamplingParams(temperature=0.0, repetition_penalty=1.0), [3.0, 2.3, 0.0]
    by_count = Sampler(dataclasses.replace(greedy, frequency_penalty=0.5), [0] * 9)
    assert draws(by_count, logits, 6) == [0, 0, 1, 0, 1, 0]
    once = Sampler(dataclasses.replace(greedy, presence_penalty=1.0), [0] * 9)
    assert draws(once, logits, 4) == [0, 1, 0, 0]


@given(LOGITS, st.sampled_from([0.0, 0.00009]))
@example([1.0, 3.0, 3.0], 0.0)
def test_greedy_takes_the_first_of_the_best(logits: list[float], temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, repetition_penalty=1.0), [])
    assert draws(sampler, logits, 3) == [logits.index(max(logits))] * 3


def test_greedy_with_a_penalty_moves_on_to_what_was_not_said() -> None:
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), [0])
    assert draws(sampler, [3.0, 2.9, 2.0, -1.0], 4) == [1, 2, 0, 0]


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0, 0.5, -3.0])
    params = SamplingParams(temperature=0.8, top_p=0.97, top_k=5, repetition_penalty=1.0, seed=5)
    order, shares = distribution(logits, params)
    number = 20_000
    counts = Counter(draws(Sampler(params, []), list(logits), number))
    assert set(counts) == set(order)
    expected = shares * number
    chi_square = sum((counts[token] - mean) ** 2 / mean for token, mean in zip(order, expected, strict=True))
    assert chi_square < 18.5, "beyond the 99.9 % point for 4 degrees of freedom"


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(1.0, 1.0, 2, 0.0, 1.0), {0, 1}),
        (SamplingParams(1.0, 0.74, 0, 0.0, 1.0), {0, 1}),  # 0.5 does not reach it, 0.75 crosses it
        (SamplingParams(1.0, 0.76, 0, 0.0, 1.0), {0, 1, 2}),
        (SamplingParams(1.0, 0.01, 0, 0.0, 1.0), {0}),
        (SamplingParams(1.0, 1.0, 0, 0.24, 1.0), {0, 1, 2}),
        (SamplingParams(1.0, 1.0, 0, 0.26, 1.0), {0, 1}),
        (SamplingParams(1.0, 0.6, 2, 0.0, 1.0), {0}),  # top-p shares of what top-k left: 0.667, 0.333
        (SamplingParams(2.0, 1.0, 0, 0.49, 1.0), {0, 1, 2}),  # at temperature 2 ratios are 0.71 and 0.5
    ],
)
def test_each_limit_lets_through_what_it_promises(params: SamplingParams, allowed: set[int]) -> None:
    logits = [float(np.log(share)) for share in (0.5, 0.25, 0.125, 0.0625, 0.0625)]
    assert set(draws(Sampler(params, []), logits, 2000)) == allowed


def test_ties_at_the_edge_of_top_k_are_broken_by_the_lower_id() -> None:
    sampler = Sampler(SamplingParams(1.0, 1.0, 2, 0.0, 1.0), [])
    assert set(draws(sampler, [1.0, 5.0, 1.0, 1.0], 400)) == {0, 1}


def test_a_best_logit_that_dwarfs_the_temperature_is_still_found() -> None:
    assert draws(Sampler(SamplingParams(0.0002), []), [1e8, 0.0, 5.0], 3) == [0] * 3


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0, 0.95, 0, 0.0, 1.0),
        SamplingParams(1.0, 1.0, 1000, 0.0, 1.0),
        SamplingParams(1.0, 1.0, 0, 1e-5, 1.0),
    ],
)
def test_unlikely_tokens_count_when_they_are_many(params: SamplingParams) -> None:
    """Nine nats below the best, 20,000 tokens have more than twice its weight together."""
    logits = [0.0] + [-9.0] * 20_000
    assert len(set(draws(Sampler(params, []), logits, 150))) > 5


def test_an_impossible_token_does_not_come_even_by_the_smallest_number() -> None:
    sampler = Sampler(OFF, [])
    sampler._random = cast("np.random.Generator", FixedRandom(0.0))
    assert draws(sampler, [-np.inf, 0.0], 1) == [1]


@pytest.mark.parametrize("params", [OFF, SamplingParams(2.0, 0.99, 50, 0.0, 1.2), SamplingParams(0.0)])
def test_an_impossible_token_never_comes(params: SamplingParams) -> None:
    sampler = Sampler(params, [0, 1])
    assert set(draws(sampler, [-np.inf, 0.0, -np.inf, 0.0, -np.inf], 300)) <= {1, 3}


@pytest.mark.parametrize("params", [OFF, SamplingParams(), SamplingParams(0.0, repetition_penalty=1.0)])
@pytest.mark.parametrize("bad", [[1.0, np.nan, 2.0], [-np.inf] * 3, [1.0, np.inf, 2.0], [np.nan] * 3])
def test_unusable_logits_are_reported(params: SamplingParams, bad: list[float]) -> None:
    with pytest.raises(GenerationFailedError):
        Sampler(params, [0]).sample(np.array(bad, np.float32))


@pytest.mark.parametrize("params", [OFF, SamplingParams(0.0002), SamplingParams(0.01, 0.99, 0, 0.1)])
def test_extreme_logits_raise_no_warning(params: SamplingParams) -> None:
    lowest = float(np.finfo(np.float32).min)
    assert draws(Sampler(params, []), [lowest, 40.0, -65504.0, lowest], 20) == [1] * 20


def test_the_seed_determines_the_stream_and_nothing_else_does() -> None:
    logits = list(np.linspace(-1, 1, 50))
    params = SamplingParams(temperature=1.0, seed=42)
    alone = draws(Sampler(params, []), logits, 50)
    first, other = Sampler(params, []), Sampler(SamplingParams(temperature=1.0, seed=43), [])
    mixed, others = [], []
    for _ in range(50):
        others += draws(other, logits, 1)
        mixed += draws(first, logits, 1)
    assert mixed == alone
    assert others != alone


def test_without_a_seed_streams_differ_and_can_be_repeated() -> None:
    logits = list(np.linspace(-1, 1, 50))
    one, two = Sampler(SamplingParams(2.0), []), Sampler(SamplingParams(2.0), [])
    assert one.seed != two.seed
    again = Sampler(SamplingParams(2.0, seed=one.seed), [])
    assert draws(one, logits, 30) == draws(again, logits, 30)


LOGITS_OF: dict[str, Callable[[np.random.Generator, int], Float64Array]] = {
    "flat": lambda random, size: random.normal(0, 0.3, size),
    "spread": lambda random, size: random.normal(0, 3, size),
    "steep": lambda random, size: -1.5 * np.log(random.permutation(size) + 1),
    "extreme": lambda random, size: random.normal(0, 3000, size),
    "ties": lambda random, size: np.round(random.normal(0, 2, size)),
    "all alike": lambda _, size: np.full(size, 1.5),
    "masked": lambda random, size: np.where(random.random(size) < 0.7, -np.inf, random.normal(0, 1, size)),
    "nearly all masked": lambda random, size: np.where(np.arange(size) % 1000, -np.inf, random.random(size)),
    "lowest": lambda random, size: np.where(
        random.random(size) < 0.5, -3.4028235e38, random.normal(0, 1, size)
    ),
}
MIXES = {
    "default": SamplingParams(top_p=0.91, repetition_penalty=1.0),
    "top-k": SamplingParams(1.5, 1.0, 1000, 0.0, 1.0),
    "all three": SamplingParams(1.2, 0.973, 300, 0.02, 1.0),
    "min-p": SamplingParams(1.0, 1.0, 0, 0.05, 1.0),
    "small min-p": SamplingParams(1.0, 1.0, 0, 1e-5, 1.0),
    "top-p": SamplingParams(1.0, 0.9, 0, 0.0, 1.0),
    "hot top-p": SamplingParams(2.0, 0.99, 0, 0.0, 1.0),
    "top-p and min-p": SamplingParams(2.0, 0.95, 0, 0.3, 1.0),
    "pure": OFF,
}
"""Of parameters, each of which takes another way through the sampler."""


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", LOGITS_OF)
@pytest.mark.parametrize("size", [2047, 6000])
def test_in_a_large_vocabulary_each_token_has_its_share(kind: str, mix: str, size: int) -> None:
    random = np.random.default_rng(size)
    for seed in range(4):
        params = dataclasses.replace(MIXES[mix], seed=seed)
        logits = LOGITS_OF[kind](random, size).astype(np.float32)
        sampler, exact = Sampler(params, []), logits.astype(np.float64)
        try:
            order, shares = distribution(exact, params, near=1e-6)
        except BorderError:
            continue
        places = {token: place for place, token in enumerate(order)}
        edges, at = np.concatenate([[0.0], np.cumsum(shares)]), exact[order]
        for uniform in uniforms(seed, 12):
            token = sampler.sample(logits.copy())
            assert token in places, "it was cut off"
            # Whose weights are the same in float32 may stand in another order, unless they are really equal.
            alike = np.flatnonzero(np.abs(at - exact[token]) < 1e-6)
            if (at[alike] == exact[token]).all():
                alike = alike[alike == places[token]]
            assert edges[alike[0]] - 1e-6 <= uniform <= edges[alike[-1] + 1] + 1e-6


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
@pytest.mark.parametrize("kind", LOGITS_OF)
def test_the_smallest_and_the_largest_number_choose_the_first_and_the_last_allowed(
    kind: str, uniform: float, mix: str
) -> None:
    for seed in range(5, 30):
        logits = LOGITS_OF[kind](np.random.default_rng(seed), 4999).astype(np.float32)
        with contextlib.suppress(BorderError):
            order, shares = distribution(logits.astype(np.float64), MIXES[mix], near=1e-6)
            break
    allowed = [token for token, share in zip(order, shares, strict=True) if share > (1e-11 if uniform else 0)]
    sampler = Sampler(MIXES[mix], [])
    sampler._random = cast("np.random.Generator", FixedRandom(uniform))
    token = sampler.sample(logits.copy())
    expected = allowed[-1 if uniform else 0]
    assert logits[token] == pytest.approx(logits[expected], abs=1e-6)
    assert token in order


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("mix", MIXES)
def test_no_mix_of_parameters_sorts_a_vocabulary(mix: str, spread: float) -> None:
    """Sorting takes two hundred times what the default parameters take; both are timed in turn."""
    logits = np.random.default_rng(0).normal(0, spread, 131_072).astype(np.float32)
    usual = np.random.default_rng(0).normal(0, 3.0, 131_072).astype(np.float32)
    sampler, default = Sampler(MIXES[mix], []), Sampler(MIXES["default"], [])
    pairs = [(seconds(sampler, logits), seconds(default, usual)) for _ in range(15)]
    assert min(taken for taken, _ in pairs) < 40 * min(by_default for _, by_default in pairs)


def seconds(sampler: Sampler, logits: FloatArray) -> float:
    """Return how long one choice takes."""
    scratch = logits.copy()
    started = time.perf_counter()
    sampler.sample(scratch)
    return time.perf_counter() - started


def test_top_p_cuts_a_large_flat_vocabulary_where_it_should() -> None:
    logits = np.random.default_rng(0).normal(0, 0.5, 50_000).astype(np.float32)
    params = SamplingParams(1.0, 0.9, 0, 0.0, 1.0)
    exact = np.sort(np.exp(logits.astype(np.float64)))[::-1]
    num_allowed = int(np.searchsorted(np.cumsum(exact), 0.9 * exact.sum())) + 1
    rank = {int(token): place for place, token in enumerate(np.argsort(-logits, kind="stable"))}
    sampler = Sampler(params, [])
    sampler._random = cast("np.random.Generator", FixedRandom(1.0 - 2**-53))
    assert abs(rank[sampler.sample(logits)] + 1 - num_allowed) <= 1


@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_what_came_before_does_not_change_which_candidates_are_found(top_k: int) -> None:
    generator = np.random.default_rng(top_k)
    spreads = [0.01, 30.0, 1.0, 0.1, 5.0, 0.0] * 8
    rows = [generator.normal(0, spread, 5000).astype(np.float32) for spread in spreads]
    params = SamplingParams(0.8, 0.95, top_k, seed=1)
    sampler = Sampler(params, [])
    for row in rows:
        fresh, number = Sampler(params, []), FixedRandom(float(generator.random()))
        sampler._random = fresh._random = cast("np.random.Generator", number)
        assert sampler.sample(row.copy()) == fresh.sample(row.copy())
