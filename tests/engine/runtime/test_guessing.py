"""Guesses change nothing: what comes out has the distribution that the large model alone has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from engine.errors import GenerationFailedError
from engine.runtime.guessing import Distribution, Guess, distribution, settle
from engine.runtime.sampling import FloatArray, Sampler
from engine.types import SamplingParams

PARAMS = {
    "all": SamplingParams(1.0, 1.0, 0, 0.0, 1.0),
    "usual": SamplingParams(0.7, 0.9, 40, 0.0, 1.1),
    "top-p of all": SamplingParams(0.8, 0.8, 0, 0.0, 1.0),
    "min-p of all": SamplingParams(1.3, 1.0, 0, 0.1, 1.0),
    "all three": SamplingParams(1.5, 0.7, 12, 0.05, 0.9),
    "counted": SamplingParams(1.0, 0.95, 20, 0.0, 1.2, frequency_penalty=0.4, presence_penalty=0.2),
    "flat": SamplingParams(2.0, 0.95, 0, 0.0, 1.0),
    "greedy": SamplingParams(0.0, 0.9, 40, 0.0, 1.0),
}
NUM_DRAWN = 4000


class Evenly:
    """Uniform numbers that lie evenly."""

    def __init__(self, number: int = NUM_DRAWN) -> None:
        self._numbers: Iterator[float] = iter((np.arange(number) + 0.5) / number)

    def random(self) -> float:
        return next(self._numbers)


def _logits(vocab_size: int, seed: int = 0, spread: float = 2.0) -> FloatArray:
    return np.random.default_rng(seed).normal(0.0, spread, vocab_size).astype(np.float32)


@pytest.mark.parametrize("vocab_size", [30, 5000])
@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_the_distribution_is_that_of_the_sampler(
    params: SamplingParams, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, drawn = _logits(vocab_size), Counter[int]()
    sampler = Sampler(params, [])
    sampler._random = Evenly()  # type: ignore[assignment]
    monkeypatch.setattr(Sampler, "_note", lambda *_: None)  # each token is the first one
    for _ in range(NUM_DRAWN):
        drawn[sampler.sample(logits.copy())] += 1
    found = distribution(logits, params)
    assert found.shares.sum() == pytest.approx(1.0)
    assert len(set(found.ids)) == len(found.ids)
    assert drawn.keys() <= set(found.ids)
    for token, share in zip(found.ids, found.shares, strict=True):
        assert abs(drawn[token] / NUM_DRAWN - share) < 1.5 / NUM_DRAWN


def _outcomes(liked: Distribution, guessed: Distribution, steps: int) -> dict[int, float]:
    """Return how likely each token comes out, over all guesses and evenly lying uniform numbers."""
    chances: dict[int, float] = dict.fromkeys([*liked.ids, *guessed.ids], 0.0)
    evenly = (np.arange(steps) + 0.5) / steps
    for token, share in zip(guessed.ids, guessed.shares, strict=True):
        guess = Guess(int(token), guessed)
        for first in evenly:
            for second in evenly[:: 1 if first > 0.5 else 3]:
                numbers = iter((first, second))
                weight = share / steps / len(evenly[:: 1 if first > 0.5 else 3])
                chances[settle(liked, guess, lambda numbers=numbers: next(numbers))] += weight  # type: ignore[misc]
    return chances


@pytest.mark.parametrize("seed", range(4))
def test_what_comes_out_of_a_guess_has_the_large_models_distribution(seed: int) -> None:
    params = SamplingParams(1.0, 1.0, 4, 0.0, 1.0)
    liked = distribution(_logits(7, seed, 1.0), params)
    guessed = distribution(_logits(7, 100 + seed, 1.0), params)
    chances = _outcomes(liked, guessed, 60)
    for token, chance in chances.items():
        assert chance == pytest.approx(liked.share_of(token), abs=0.02)


def test_where_both_agree_every_guess_is_taken_and_where_they_share_nothing_none_is() -> None:
    some, others = (
        Distribution(np.array([3, 5]), np.array([0.25, 0.75])),
        Distribution(np.array([1, 2]), np.array([0.5, 0.5])),
    )
    for uniform in (0.0, 0.5, 0.999999):
        assert settle(some, Guess(3, some), lambda: uniform) == 3  # noqa: B023
        assert settle(some, Guess(1, others), lambda: uniform) == (3 if uniform < 0.25 else 5)  # noqa: B023


def test_a_guess_is_taken_as_often_as_the_overlap_says() -> None:
    liked, guessed = (distribution(_logits(300, seed), PARAMS["all"]) for seed in (1, 2))
    overlap = sum(
        min(share, guessed.share_of(token)) for token, share in zip(liked.ids, liked.shares, strict=True)
    )
    random = np.random.default_rng(3)
    taken = 0
    for _ in range(2000):
        token = guessed.at(random.random())
        taken += settle(liked, Guess(token, guessed), random.random) == token
    assert taken / 2000 == pytest.approx(overlap, abs=0.04)


def test_penalties_hold_for_guesses_and_for_what_was_drafted_before_them() -> None:
    params = SamplingParams(1.0, 1.0, 0, 0.0, 2.0, seed=1)
    logits = np.array([4.0, 3.0, 2.0, 1.0], np.float32)
    sampler = Sampler(params, [1], exempt_ids={2})
    drawn_from = sampler.guess(logits.copy(), [0, 2]).drawn_from
    expected = np.exp([2.0, 1.5, 2.0, 1.0])
    np.testing.assert_allclose(drawn_from.shares, expected / expected.sum(), rtol=1e-6)
    # Drafted tokens count no further than their draft.
    expected = np.exp([4.0, 1.5, 2.0, 1.0])
    np.testing.assert_allclose(
        sampler.guess(logits.copy(), []).drawn_from.shares, expected / expected.sum(), rtol=1e-6
    )
    # What is verified counts.
    sampler.verify(np.array([90.0, 0.0, 0.0, 0.0], np.float32), Guess(0, drawn_from))
    expected = np.exp([2.0, 1.5, 2.0, 1.0])
    np.testing.assert_allclose(
        sampler.guess(logits.copy(), []).drawn_from.shares, expected / expected.sum(), rtol=1e-6
    )


def test_logits_that_are_no_numbers_are_refused() -> None:
    sampler, nothing = Sampler(PARAMS["usual"], []), np.full(9, np.nan, np.float32)
    with pytest.raises(GenerationFailedError):
        sampler.guess(nothing.copy(), [])
    with pytest.raises(GenerationFailedError):
        sampler.verify(nothing.copy(), Guess(1, distribution(_logits(9), PARAMS["usual"])))
