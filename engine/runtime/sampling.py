"""Choosing the next token of one request from its logits. Pure numpy, no knowledge of batches.

The order is that of Hugging Face's generation: repetition penalty, temperature, top-k, top-p, min-p.
Each request owns its random stream: one uniform number per token, from PCG64 seeded by the request, so
that what else runs at the same time changes nothing.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.errors import GenerationFailedError
from engine.types import SamplingParams

FloatArray = npt.NDArray[np.float32]

DEVICE_CANDIDATES = 64
"""Of the most likely tokens a device chooses from so many."""
_GREEDY_BELOW = 1e-4
_FIRST_TAIL = 8.0
"""Nats below the best logit within which candidates are looked for first."""
_MANY = 4
"""With so many times the candidates that top-k keeps, the next step looks for fewer."""
_NO_NUMBERS = "The model produced no valid probabilities. Try again."
_WHOLE_TAIL = 128.0
"""What lies lower than this has a weight of 0 in float32 and is never a candidate."""


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of logits that stayed on the device, which chose `token` from it.

    logits: float32 [vocab], for the host to choose instead where the device's candidates do not suffice.
    is_number: false where the logits were none.
    """

    token: int
    logits: FloatArray | None = None
    is_number: bool = True


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
        self._seen: dict[int, None] = {}
        if params.repetition_penalty != 1.0:
            self._seen = dict.fromkeys(token for token in prompt_ids if token not in self._exempt)
        self._seen_ids = np.fromiter(self._seen, np.int64, len(self._seen))
        self._tail = _FIRST_TAIL
        self._uniforms: deque[float] = deque()

    @property
    def seen_ids(self) -> Collection[int]:
        """The tokens that the repetition penalty holds for."""
        return self._seen.keys()

    @property
    def penalises(self) -> bool:
        """Whether there is a repetition penalty."""
        return self._params.repetition_penalty != 1.0

    @property
    def fits_device(self) -> bool:
        """Whether DEVICE_CANDIDATES tokens usually tell what is chosen; else the host needs whole rows."""
        params = self._params
        if params.temperature < _GREEDY_BELOW or 0 < params.top_k <= DEVICE_CANDIDATES:
            return True
        return params.top_k == 0 and (params.top_p < 1.0 or params.min_p > 0.0)

    def device_row(self, ahead: int = 0) -> tuple[float, ...]:
        """Return what a device needs to choose the token after the `ahead` next ones as `sample` would.

        Temperature, top-k, top-p, min-p, repetition penalty and the uniform number.
        """
        params = self._params
        while len(self._uniforms) <= ahead:
            self._uniforms.append(self._random.random())
        return (
            params.temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty,
            self._uniforms[ahead],
        )  # fmt: skip

    def take(self, row: SampledRow) -> int:
        """Accept what a device chose with `device_row`, or choose where it could not.

        Raises `GenerationFailedError` when the logits are not numbers.
        """
        if not row.is_number:
            raise GenerationFailedError(_NO_NUMBERS)
        if row.logits is not None:
            return self.sample(row.logits)
        if self._params.temperature >= _GREEDY_BELOW:
            self._uniform()
        self._note(row.token)
        return row.token

    @np.errstate(over="ignore")  # the lowest float32, as masks have it, becomes -inf: just as impossible
    def sample(self, logits: FloatArray) -> int:
        """Choose a token id from `logits` [vocab], which is changed in place.

        Raises `GenerationFailedError` when the logits are not numbers.
        """
        self._penalise(logits)
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise GenerationFailedError(_NO_NUMBERS)
        token = best if self._params.temperature < _GREEDY_BELOW else self._draw(logits, logits[best])
        self._note(token)
        return token

    def _note(self, token: int) -> None:
        if self._params.repetition_penalty != 1.0 and token not in self._exempt:
            self._see(token)

    def _uniform(self) -> float:
        """Return the next uniform number, which `device_row` may have drawn already."""
        return self._uniforms.popleft() if self._uniforms else self._random.random()

    def _see(self, token: int) -> None:
        """Remember a token, once; the array of ids grows by doubling."""
        if token in self._seen:
            return
        if len(self._seen) == len(self._seen_ids):
            self._seen_ids = np.concatenate([self._seen_ids, np.zeros(len(self._seen_ids) + 64, np.int64)])
        self._seen_ids[len(self._seen)] = token
        self._seen[token] = None

    def _penalise(self, logits: FloatArray) -> None:
        if not self._seen:
            return
        seen = self._seen_ids[: len(self._seen)]
        penalty = np.float32(self._params.repetition_penalty)
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)

    def _draw(self, logits: FloatArray, best: np.float32) -> int:
        params = self._params
        if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
            weights = np.exp((logits - best) / params.temperature, dtype=np.float64)
            return self._pick(np.arange(len(logits)), weights)
        ids, weights, total = self._candidates(logits, best)
        if params.top_k:
            ids, weights = ids[: params.top_k], weights[: params.top_k]
            total = float(weights.sum())
        if params.top_p < 1.0:
            # Keep a token while the mass before it is below top_p: the one that crosses it stays.
            before = np.cumsum(weights, dtype=np.float64) - weights
            weights = weights[: max(1, int(np.searchsorted(before, params.top_p * total)))]
        if params.min_p:
            weights = weights[weights >= params.min_p * weights[0]]
        return self._pick(ids[: len(weights)], weights)

    def _candidates(
        self, logits: FloatArray, best: np.float32
    ) -> tuple[npt.NDArray[np.int64], FloatArray, float]:
        """Return likely ids and weights, most likely first, and without top-k the vocabulary's weight.

        They are enough for top-k and top-p to cut within them: the tail is widened until they are.
        """
        spread = self._params.temperature
        # Top-k makes its own total; without it the whole vocabulary counts.
        total = 0.0 if self._params.top_k else float(np.exp((logits - best) / np.float32(spread)).sum())
        tail = self._tail
        while True:
            ids = np.flatnonzero(logits >= np.float32(best - tail * spread))
            weights = np.exp((logits[ids] - best) / np.float32(spread))
            if tail >= _WHOLE_TAIL or self._suffices(weights, total):
                break
            tail *= 2
        if self._params.top_k and len(weights) > _MANY * self._params.top_k:
            # Sorting all of a flat distribution would take longer than the model's step.
            self._tail = 0.8 * tail
            kept = weights >= np.partition(weights, -self._params.top_k)[-self._params.top_k]
            ids, weights = ids[kept], weights[kept]
        order = np.argsort(-weights, kind="stable")
        return ids[order], weights[order], total

    def _suffices(self, weights: FloatArray, total: float) -> bool:
        """Return whether top-k, or else top-p, cuts within these weights of the most likely tokens."""
        if self._params.top_k:
            return len(weights) >= self._params.top_k
        return float(weights.sum(dtype=np.float64)) >= self._params.top_p * total

    def _pick(self, ids: npt.NDArray[np.int64], weights: npt.NDArray[np.floating]) -> int:
        cumulative = np.cumsum(weights, dtype=np.float64)
        at = np.searchsorted(cumulative, self._uniform() * cumulative[-1], side="right")
        return int(ids[min(int(at), len(ids) - 1)])
