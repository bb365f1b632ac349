"""Drafts with a small model, for one conversation at a time.

The small model has a cache of one slot. What the conversation did not accept of a draft is overwritten by the
next one: a cache is taken back to any of its tokens by going on behind it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from engine.runtime.draft_pace import DraftCosts, DraftPace
from engine.runtime.guessing import GREEDY_BELOW, Guess
from engine.runtime.request import Request
from engine.runtime.runner import SlotModel
from engine.runtime.sampling import FloatArray
from engine.runtime.scheduler import StepPlan

_log = logging.getLogger(__name__)

_CHUNK = 128
"""Tokens that the small model reads in a step, where it has to catch up with a conversation."""
_WORTH_READING = 8
"""It catches up where there are no more tokens to read than so many for each that may still be answered."""


class Drafter:
    """Owns a small model and what is in its cache. One thread only."""

    def __init__(self, model: SlotModel, max_tokens: int, vocab_size: int) -> None:
        """`model` has a slot for a sequence of up to `max_tokens`. `vocab_size` is what both models know."""
        self._model = model
        self._max_tokens = max_tokens
        self._vocab_size = vocab_size
        self._costs = DraftCosts()
        self._ids: list[int] = []
        """Whose KV the cache holds."""
        self._request: Request | None = None
        self._num_sure = 0
        """Ids of the cache that are known to be the request's."""
        self._pace = DraftPace(self._costs)
        self._num_drafted = 0
        self._draft_s = 0.0

    def record_plain(self, seconds: float) -> None:
        """Take note of how long the large model takes for a step of one token."""
        self._costs.record_plain(seconds)

    def draft(self, request: Request) -> list[Guess]:
        """Return what the request's next tokens may be, nothing where that does not pay or cannot be yet."""
        started = time.perf_counter()
        self._turn_to(request)
        room = min(request.num_left - 1, self._max_tokens - len(request.ids))
        num_tokens = min(self._pace.length(), room)
        if num_tokens <= 0:
            return []
        guesses = self._guess(request, num_tokens)
        self._num_drafted, self._draft_s = len(guesses), time.perf_counter() - started
        return guesses

    def record(self, request: Request, num_accepted: int, step_s: float) -> None:
        """Learn how the last draft turned out, and how long the step took that looked at it."""
        if request is not self._request or not self._num_drafted:
            return
        self._pace.record(self._num_drafted, num_accepted, self._draft_s + step_s)
        self._costs.record_draft(self._num_drafted, self._draft_s, step_s)
        self._num_drafted = 0

    def release(self, request: Request, *, keep: bool) -> None:
        """Let go of a request, and of its KV unless it is to be kept."""
        if request is self._request:
            self._request, self._num_sure = None, 0
            if not keep:
                self.forget()

    def forget(self) -> None:
        """Let go of all KV. What is still needed of it is computed anew."""
        self._ids.clear()
        self._num_sure = 0
        self._model.kv.give_back(0)

    def _turn_to(self, request: Request) -> None:
        if request is not self._request:
            self._request, self._num_sure, self._num_drafted = request, 0, 0
            self._pace = DraftPace(self._costs)

    def _guess(self, request: Request, num_tokens: int) -> list[Guess]:
        pending = self._take_back(request)
        if len(pending) > _WORTH_READING * request.num_left:
            return []
        chunk = pending[:_CHUNK]
        logits = self._model.prefill(0, chunk, len(self._ids))
        self._ids += chunk
        self._num_sure = len(self._ids)
        if len(chunk) < len(pending):
            return []
        guesses = [self._guess_next(request, logits, ())]
        while len(guesses) < num_tokens and guesses[-1].token not in request.stop_ids:
            token = guesses[-1].token
            logits = self._model.decode(0, [token], [len(self._ids)])[0]
            self._ids.append(token)
            guesses.append(self._guess_next(request, logits, [guess.token for guess in guesses]))
        return guesses

    def _guess_next(self, request: Request, logits: FloatArray, drafted: Sequence[int]) -> Guess:
        return request.sampler.guess(logits[: self._vocab_size], drafted)

    def _take_back(self, request: Request) -> list[int]:
        """Take the cache back to what it has of the request; return the rest, which is never empty."""
        first = min(self._num_sure, len(request.ids) - 1)
        pairs = zip(self._ids[first:], request.ids[first:-1], strict=False)
        first += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        del self._ids[first:]
        self._num_sure = first
        return request.ids[first:]


def _may_guess(request: Request) -> bool:
    """Tell whether guesses leave an answer what it is: they take random numbers, which a seed foretells."""
    params = request.params
    is_seeded = params.is_reproducible and params.temperature >= GREEDY_BELOW
    return request.speculation is not None and not is_seeded


class Drafting:
    """What a runner does with a small model, which it need not have: no answer ever depends on it."""

    def __init__(self, drafter: Drafter | None) -> None:
        self._drafter = drafter
        self._step_s = 0.0

    def draft(self, plan: StepPlan) -> StepPlan:
        """See `Runner.draft`."""
        request = plan.decode[0] if len(plan.decode) == 1 and not (plan.prefill or plan.drafts) else None
        if self._drafter is None or request is None or not _may_guess(request):
            return plan
        try:
            guesses = self._drafter.draft(request)
        except Exception:  # noqa: BLE001 - whatever a native library raises: no answer needs its drafts
            _log.warning("The draft model failed and is not used any more.", exc_info=True)
            self._drafter = None
            return plan
        if not guesses:
            return plan
        tokens = tuple(guess.token for guess in guesses)
        return replace(plan, drafts={request: tokens}, guesses={request: guesses})

    def note_step(self, plan: StepPlan, decode_s: float) -> None:
        """Take note of how long a step has decoded."""
        self._step_s = decode_s
        if self._drafter is not None and len(plan.decode) == 1 and not plan.drafts:
            self._drafter.record_plain(decode_s)

    def confirm(self, request: Request, num_accepted: int) -> None:
        """Take note of how many tokens of the last draft were accepted, whoever made it."""
        if self._drafter is not None:
            self._drafter.record(request, num_accepted, self._step_s)

    def release(self, request: Request, *, keep: bool) -> None:
        """See `Drafter.release`."""
        if self._drafter is not None:
            self._drafter.release(request, keep=keep)

    def forget(self) -> None:
        """See `Drafter.forget`."""
        if self._drafter is not None:
            self._drafter.forget()
