"""Decides what the next step computes. Pure: no tensors, no threads, no clock of its own.

Every step decodes one token for each request past its prompt, and computes a budget of prompt tokens. Short
prompts come first, since they are done soonest, but half of the budget is for the prompt whose turn it is, so
that neither a long prompt nor many short ones hold up anyone for long. The budget is sized by measured speed
to take about as long as people do not notice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.describing.footprint import MAX_CHUNK
from engine.runtime.guessing import Guess
from engine.runtime.request import Request
from engine.runtime.speculation import MAX_ROWS, StepTimer

_MIN_CHUNK = 16
_CHUNK_STEP = 16


@dataclass(frozen=True, slots=True)
class PrefillPace:
    """How much of prompts a step computes.

    largest: tokens at most. alone_s: the time it may take where no answer is being made; beside_s: beside
    answers, and there at most the time of `beside_steps` steps without prompts. first_tokens_per_s: the speed
    that is expected before one was measured.
    """

    largest: int = MAX_CHUNK
    alone_s: float = 0.4
    beside_s: float = 0.1
    beside_steps: float = math.inf
    first_tokens_per_s: float = 400.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_tokens` of a request's prompt."""

    request: Request
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: chunks of prompts, and one token for each of `decode`.

    drafts: what the next tokens of some of these may be. guesses: what those were drawn from that a small
    model made.
    """

    prefill: tuple[Chunk, ...]
    decode: tuple[Request, ...]
    drafts: Mapping[Request, tuple[int, ...]] = field(default_factory=dict)
    guesses: Mapping[Request, Sequence[Guess]] = field(default_factory=dict)

    @property
    def num_prefill(self) -> int:
        """Prompt tokens in this step."""
        return sum(chunk.num_tokens for chunk in self.prefill)

    @property
    def is_empty(self) -> bool:
        return not self.prefill and not self.decode


class ChunkSizer:
    """Learns the speed of prefill and says how many tokens of prompts fit a step."""

    def __init__(self, pace: PrefillPace = PrefillPace()) -> None:
        self._pace = pace
        self._tokens_per_s = pace.first_tokens_per_s
        self._step_s = 0.0

    def record(self, num_tokens: int, seconds: float) -> None:
        """Take note of a chunk's duration. Small ones say little and are passed over."""
        if num_tokens >= _MIN_CHUNK and seconds > 0:
            self._tokens_per_s += 0.3 * (num_tokens / seconds - self._tokens_per_s)

    def record_step(self, seconds: float) -> None:
        """Take note of the duration of a step without prompts."""
        self._step_s += (0.2 if self._step_s else 1.0) * (seconds - self._step_s)

    def size(self, *, is_beside: bool) -> int:
        """Return how many tokens to compute, a multiple of 16; `is_beside` answers that are being made."""
        pace = self._pace
        seconds = pace.alone_s
        if is_beside:
            seconds = min(pace.beside_s, pace.beside_steps * self._step_s) if self._step_s else pace.beside_s
        wanted = int(self._tokens_per_s * seconds) // _CHUNK_STEP * _CHUNK_STEP
        return max(_MIN_CHUNK, min(pace.largest, wanted))


def _chunk(num_pending: int, size: int) -> int:
    """Return how much of a prompt to take, never leaving one token alone (it would round differently)."""
    return size - 1 if num_pending == size + 1 else min(size, num_pending)


class Scheduler:
    """Owns the order of requests: prefilling in turns, then decoding."""

    def __init__(self, pace: PrefillPace = PrefillPace()) -> None:
        self._prefilling: deque[Request] = deque()
        self._decoding: list[Request] = []
        self.sizer = ChunkSizer(pace)
        self.timer = StepTimer()
        self.max_drafting = 1
        """Requests that are decoded at once where there are drafts."""

    @property
    def running(self) -> list[Request]:
        """Requests that have not ended."""
        return [*self._decoding, *self._prefilling]

    def add(self, request: Request) -> None:
        """Begin with a request that has its place in the cache."""
        self._prefilling.append(request)

    def plan(self) -> StepPlan:
        """Return the next step."""
        decode = tuple(self._decoding)
        if not self._prefilling:
            return StepPlan((), decode, self._drafts())
        # Who asks while something is computed ahead waits for the end of the step, as answers would.
        is_beside = bool(decode) or self._prefilling[0].is_ahead
        return StepPlan(self._chunks(self.sizer.size(is_beside=is_beside)), decode)

    def _drafts(self) -> dict[Request, tuple[int, ...]]:
        """Draft for those that are decoded, unless they are so many that they fill a step already.

        Beside others a draft is only made where it is known what it must be worth.
        """
        num_rows = num_left = len(self._decoding)
        if num_rows > self.max_drafting or not (num_rows == 1 or self.timer.knows(num_rows)):
            return {}
        drafts, room = {}, MAX_ROWS - num_rows
        for request in self._decoding:
            draft = request.draft(room // num_left, is_alone=num_rows == 1)
            if draft:
                drafts[request] = draft
            room, num_left = room - len(draft), num_left - 1
        return drafts

    def prefilled(self, request: Request) -> None:
        """Move on after a chunk of `request`, in the order of the plan."""
        if not request.is_prefilling:
            self._prefilling.remove(request)
            self._decoding.append(request)
        elif request is self._prefilling[0]:
            self._prefilling.rotate(-1)

    def _chunks(self, budget: int) -> tuple[Chunk, ...]:
        """Divide `budget` tokens among the prompts; the last chunk is of the one whose turn it is."""
        pending = {request: len(request.pending_ids()) for request in self._prefilling}
        first, *others = self._prefilling
        num_reserved = min(pending[first], budget // 2)
        chunks = []
        rest = budget - num_reserved
        for request in sorted(others, key=pending.__getitem__):
            num_tokens = _chunk(pending[request], rest)
            if num_tokens < min(pending[request], _MIN_CHUNK):
                break
            chunks.append(Chunk(request, num_tokens))
            rest -= num_tokens
        return *chunks, Chunk(first, _chunk(pending[first], num_reserved + rest))

    def remove(self, request: Request) -> None:
        """Forget a request that ended, wherever it is."""
        for group in (self._decoding, self._prefilling):
            if request in group:
                group.remove(request)
