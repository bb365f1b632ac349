"""Choosing the next token of one request from its logits. Pure numpy, no knowledge of batches.

The order is that of Hugging Face's generation: repetition penalty, temperature, top-k, top-p, min-p;
frequency and presence penalty follow the repetition penalty. Each request owns its random stream: one
uniform number per token, from PCG64 seeded by the request, so that what else runs at the same time changes
nothing.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.errors import GenerationFailedError
from engine.runtime.guessing import GREEDY_BELOW, NEARLY_ALL, Guess, distribution, settle
from engine.runtime.ranking import Places, Ranking, bound, largest, reach_in_place
from engine.types import RANGES, SamplingParams

FloatArray = npt.NDArray[np.float32]

DEVICE_CANDIDATES = 64
"""Of the most likely tokens a device chooses from so many."""
DEVICE_ROW = (*(name for name in RANGES if name not in {"max_new_tokens", "seed"}), "uniform")
"""What tells a device how to choose a token: the parameters in this order, and a uniform number."""
_NUM_LIKELY = 512
"""So many of the most likely tokens are looked at first; mostly top-p and min-p leave fewer."""
_NO_NUMBERS = "The model produced no valid probabilities. Try again."
_TAIL = 128.0
"""What lies so many nats below the best has a weight of 0 in float32 and is never a candidate."""


def device_row_of(params: SamplingParams, uniform: float) -> tuple[float, ...]:
    """Return the values that `DEVICE_ROW` names."""
    return (*(getattr(params, name) for name in DEVICE_ROW[:-1]), uniform)


CHOSEN_BY_HOST = device_row_of(SamplingParams(1.0, 1.0, 2 * DEVICE_CANDIDATES, 0.0, 1.0), 0.0)
"""Of a token that the host chooses: top-k is beyond the device's candidates."""


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of logits that stayed on the device, which chose `token` from it.

    logits: float32 [vocab], for the host to choose instead where the device's candidates do not suffice.
    is_number: false where the logits were none.
    """

    token: int
    logits: FloatArray | None = None
    is_number: bool = True


class _Tally:
    """How often each token came, as arrays that grow by doubling."""

    def __init__(self, ids: Collection[int] = ()) -> None:
        self.places = {token: place for place, token in enumerate(ids)}
        self._ids = np.fromiter(self.places, np.int64, len(self.places))
        self._counts = np.ones(len(self.places), np.float32)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The tokens, each once."""
        return self._ids[: len(self.places)]

    @property
    def counts(self) -> FloatArray:
        """How often each of `ids` came; those that were there at the beginning count once."""
        return self._counts[: len(self.places)]

    def add(self, token: int) -> None:
        """Count a token once more."""
        place = self.places.setdefault(token, len(self.places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(place + 64, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(place + 64, np.float32)])
        self._ids[place] = token
        self._counts[place] += 1


class Sampler:
    """Samples for one request; remembers its seen tokens and its random stream."""

    def __init__(
        self, params: SamplingParams, prompt_ids: Iterable[int], exempt_ids: Collection[int] = ()
    ) -> None:
        """`exempt_ids` are never penalised: an end-of-turn token must stay as likely as the model says."""
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._exempt = frozenset(exempt_ids)
        self._seen = _Tally(set(prompt_ids) - self._exempt if self.penalises else ())
        self._said = _Tally()
        self._uniforms: deque[float] = deque()
        self._depth = -1.0

    @property
    def seen_ids(self) -> Collection[int]:
        """The tokens that the repetition penalty holds for."""
        return self._seen.places.keys()

    @property
    def penalises(self) -> bool:
        """Whether there is a repetition penalty."""
        return self._params.repetition_penalty != 1.0

    @property
    def fits_device(self) -> bool:
        """Whether DEVICE_CANDIDATES tokens usually tell what is chosen; else the host needs whole rows."""
        params = self._params
        if self._counts_said:
            return False  # the device knows which tokens came, but not how often
        if params.temperature < GREEDY_BELOW or 0 < params.top_k <= DEVICE_CANDIDATES:
            return True
        return params.top_k == 0 and (params.top_p < 1.0 or params.min_p > 0.0)

    def device_row(self, ahead: int = 0) -> tuple[float, ...]:
        """Return the `DEVICE_ROW` by which a device chooses as `sample` would, after `ahead` more tokens."""
        if self._counts_said:
            return CHOSEN_BY_HOST
        while len(self._uniforms) <= ahead:
            self._uniforms.append(self._random.random())
        return device_row_of(self._params, self._uniforms[ahead])

    def take(self, row: SampledRow) -> int:
        """Accept what a device chose with `device_row`, or choose where it could not.

        Raises `GenerationFailedError` when the logits are not numbers.
        """
        if not row.is_number:
            raise GenerationFailedError(_NO_NUMBERS)
        if row.logits is not None:
            return self.sample(row.logits)
        if self._params.temperature >= GREEDY_BELOW:
            self._uniform()
        self._note(row.token)
        return row.token

    @np.errstate(over="ignore")  # the lowest float32, as masks have it, becomes -inf: just as impossible
    def sample(self, logits: FloatArray) -> int:
        """Choose a token id from `logits` [vocab], which is changed in place.

        Raises `GenerationFailedError` when the logits are not numbers.
        """
        self._penalise(logits)
        best = self._check(logits)
        token = best if self._params.temperature < GREEDY_BELOW else self._draw(logits, logits[best])
        self._note(token)
        return token

    @np.errstate(over="ignore")  # as in `sample`
    def guess(self, logits: FloatArray, drafted: Sequence[int]) -> Guess:
        """Choose from a small model's `logits` what `verify` may take, behind what was `drafted` before it.

        The logits are changed in place. Raises `GenerationFailedError` when they are not numbers.
        """
        self._penalise(logits, set(drafted) - self._exempt)
        self._check(logits)
        found = distribution(logits, self._params)
        return Guess(found.at(self._uniform()), found)

    @np.errstate(over="ignore")  # as in `sample`
    def verify(self, logits: FloatArray, guess: Guess) -> int:
        """Do what `sample` does, taking the guess as often as the distribution allows."""
        self._penalise(logits)
        self._check(logits)
        token = settle(distribution(logits, self._params), guess, self._uniform)
        self._note(token)
        return token

    @property
    def _counts_said(self) -> bool:
        return self._params.frequency_penalty != 0.0 or self._params.presence_penalty != 0.0

    def _note(self, token: int) -> None:
        if token in self._exempt:
            return
        if self.penalises:
            self._seen.add(token)
        if self._counts_said:
            self._said.add(token)

    def _uniform(self) -> float:
        """Return the next uniform number, which `device_row` may have drawn already."""
        return self._uniforms.popleft() if self._uniforms else self._random.random()

    @staticmethod
    def _check(logits: FloatArray) -> int:
        """Return the most likely token. Raises `GenerationFailedError` when the logits are not numbers."""
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise GenerationFailedError(_NO_NUMBERS)
        return best

    def _penalise(self, logits: FloatArray, drafted: Collection[int] = ()) -> None:
        """Hold the penalties against what came; of the first, `drafted` tokens count as had too."""
        params = self._params
        seen = self._seen.ids
        if drafted and self.penalises:
            seen = np.union1d(seen, np.array([*drafted]))
        if len(seen):
            penalty, values = np.float32(params.repetition_penalty), logits[seen]
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if len(said := self._said.ids):
            logits[said] -= self._said.counts * params.frequency_penalty + params.presence_penalty

    def _draw(self, logits: FloatArray, best: np.float32) -> int:
        params = self._params
        if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
            return reach_in_place(self._scaled(logits, best), self._uniform())
        ids, least = self._likely(logits, best)
        if params.top_k == 0:
            return self._draw_from_all(logits, best, ids, least)
        weights = self._weights(logits[ids], best)
        kept = largest(weights, params.top_k)
        return int(ids[kept[self._place(weights[kept])]])

    def _draw_from_all(self, logits: FloatArray, best: np.float32, ids: Places, least: float) -> int:
        """Choose without top-k: from `ids`, those that reach `least`, where top-p or min-p cuts there."""
        params, whole, total = self._params, None, math.inf
        if params.top_p < 1.0:
            whole = self._weights(logits, best)
            total = _sum(whole)
        if len(ids) <= 4 * _NUM_LIKELY:
            weights = self._weights(logits[ids], best)
            others = 1.001 * math.exp((least - float(best)) / params.temperature)
            if others < params.min_p or _sum(weights) >= params.top_p * total:
                return int(ids[self._place(weights, total)])
        return self._place(self._weights(logits, best) if whole is None else whole, total)

    def _likely(self, logits: FloatArray, best: np.float32) -> tuple[Places, float]:
        """Return the ids of the most likely tokens, as many as are looked at first, and what they reach.

        Mostly they lie as far below the best as those of the token before.
        """
        spread, number = self._params.temperature, self._params.top_k or _NUM_LIKELY
        least = float(best) - self._depth
        ids = np.flatnonzero(logits >= least)
        if not number <= len(ids) <= 4 * number:
            # A little less: what has the same weight after rounding counts as equally likely.
            reached = float(best) - bound(logits, number)
            self._depth = min(reached + 1e-6 * (spread + reached), _TAIL * spread)
            least = float(best) - self._depth
            ids = np.flatnonzero(logits >= least)
        return ids, least

    def _scaled(self, logits: FloatArray, best: np.float32) -> FloatArray:
        scaled = logits - best
        scaled /= np.float32(self._params.temperature)
        return scaled

    def _weights(self, logits: FloatArray, best: np.float32) -> FloatArray:
        """Return the probabilities of tokens as shares of the most likely one's."""
        weights = self._scaled(logits, best)
        np.exp(weights, out=weights)
        return weights

    def _place(self, weights: FloatArray, total: float | None = None) -> int:
        """Return the place of the weight that the next uniform number chooses.

        Top-p is a share of `total`, which is theirs unless there are others.
        """
        params, ranking = self._params, Ranking(weights)
        mass = ranking.total
        if params.top_p < 1.0:
            # Keep a token while the mass before it is below top-p: the one that crosses it stays.
            _, mass = ranking.reach(params.top_p * (mass if total is None else total) * NEARLY_ALL)
        if params.min_p:
            mass = min(mass, _sum(weights * (weights >= params.min_p)))
        place, _ = ranking.reach(min(self._uniform(), NEARLY_ALL) * mass)
        return place


def _sum(weights: FloatArray) -> float:
    return float(weights.sum(dtype=np.float64))
