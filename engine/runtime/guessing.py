"""A small model's guesses, and how a large one settles them: speculative sampling. Pure numpy.

A guess was drawn from the small model's distribution. It is taken with the probability p/q, where the large
model gives it the probability p and the small one q; if not, another token is drawn from what the large model
likes more than the small one. What comes out has exactly the large model's distribution, whatever the small
one guesses. (Leviathan, Kalman and Matias, 2023: Fast Inference from Transformers via Speculative Decoding.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.runtime.ranking import Places, largest
from engine.types import SamplingParams

Shares = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]

GREEDY_BELOW = 1e-4
"""A lower temperature always takes the most likely token."""
NEARLY_ALL = 1 - 2.0**-38
"""Of a sum: rounding in another order of its parts must not lead past its end."""
_FIRST_LOOKED_AT = 512


@dataclass(frozen=True, slots=True)
class Distribution:
    """The tokens that may be chosen, each once, and their probabilities, whose sum is 1."""

    ids: Places
    shares: Shares

    def share_of(self, token: int) -> float:
        """Return the probability of a token."""
        return float(self.shares[self.ids == token].sum())

    def at(self, uniform: float) -> int:
        """Return the token that a uniform number chooses."""
        return _reached(self.ids, self.shares, uniform)


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that was drafted, and what it was drawn from."""

    token: int
    drawn_from: Distribution


def distribution(logits: FloatArray, params: SamplingParams) -> Distribution:
    """Return what `Sampler` draws from where `logits` [vocab], penalised already, say what follows."""
    best = logits.max()
    if params.temperature < GREEDY_BELOW:
        return Distribution(np.array([logits.argmax()]), np.ones(1))
    weights = np.exp((logits - best) / np.float32(params.temperature))
    if params.top_k:
        ids = largest(weights, params.top_k)
        return _cut(ids, weights[ids].astype(np.float64), params, None)
    if params.top_p == 1.0:
        ids = np.flatnonzero(weights >= params.min_p)
        return _shared(ids, weights[ids].astype(np.float64))
    total, number = float(weights.sum(dtype=np.float64)), _FIRST_LOOKED_AT
    while True:
        ids = largest(weights, number)
        ordered = weights[ids].astype(np.float64)
        if number >= len(weights) or ordered.sum() >= params.top_p * total:
            return _cut(ids, ordered, params, total)
        number *= 8


def settle(liked: Distribution, guess: Guess, uniform: Callable[[], float]) -> int:
    """Return a token of the distribution `liked`: the guess, or another one."""
    token, guessed = guess.token, guess.drawn_from
    if uniform() * guessed.share_of(token) < liked.share_of(token):
        return token
    order = np.argsort(guessed.ids)
    places = order[np.searchsorted(guessed.ids, liked.ids, sorter=order).clip(max=len(order) - 1)]
    taken = np.where(guessed.ids[places] == liked.ids, guessed.shares[places], 0.0)
    more = np.maximum(liked.shares - taken, 0.0)
    if not more.any():  # the two differ by rounding alone
        return liked.at(uniform())
    return _reached(liked.ids, more, uniform())


def _cut(ids: Places, ordered: Shares, params: SamplingParams, total: float | None) -> Distribution:
    """Apply top-p and min-p to weights in order; `total` is the sum of all where these are not all."""
    sums = np.cumsum(ordered)
    reach = params.top_p * (sums[-1] if total is None else total) * NEARLY_ALL
    # A token stays while the mass before it is below top-p: the one that crosses it stays.
    stays = (ordered >= params.min_p) & ((sums - ordered <= reach) | (params.top_p == 1.0))
    return _shared(ids[stays], ordered[stays])


def _shared(ids: Places, weights: Shares) -> Distribution:
    return Distribution(ids, weights / weights.sum())


def _reached(ids: Places, weights: Shares, uniform: float) -> int:
    """Return the id with which the sum of weights passes its share `uniform`."""
    sums = np.cumsum(weights)
    return int(ids[np.searchsorted(sums, min(uniform, NEARLY_ALL) * sums[-1], side="right")])
