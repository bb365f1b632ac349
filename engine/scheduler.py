"""Decides what the next step computes. Pure: no tensors, no threads, no clock of its own.

Every step decodes one token for each request past its prompt, and gives one waiting prompt a chunk of
prefill, turn by turn, so that neither a long prompt nor many short ones hold up anyone for long. The chunk
is sized by measured speed to take about as long as people do not notice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.request import Request
from engine.speculation import StepTimer

_MIN_CHUNK = 16
_CHUNK_STEP = 16
_MAX_CHUNK = 512
_ALONE_S = 0.4
_BESIDE_DECODE_S = 0.1
_FIRST_GUESS_TOKENS_PER_S = 400.0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: at most one prompt's next `num_prefill` tokens, then one token for each of `decode`.

    guess: with only one request to decode, what its next tokens may be.
    """

    prefill: Request | None
    num_prefill: int
    decode: tuple[Request, ...]
    guess: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        return self.prefill is None and not self.decode


class ChunkSizer:
    """Learns the speed of prefill and turns a span of time into a number of tokens."""

    def __init__(self) -> None:
        self._tokens_per_s = _FIRST_GUESS_TOKENS_PER_S

    def record(self, num_tokens: int, seconds: float) -> None:
        """Take note of a chunk's duration. Small ones say little and are passed over."""
        if num_tokens >= _MIN_CHUNK and seconds > 0:
            self._tokens_per_s += 0.3 * (num_tokens / seconds - self._tokens_per_s)

    def size(self, seconds: float) -> int:
        """Return how many tokens take about `seconds`, a multiple of 16 between 16 and 512."""
        wanted = int(self._tokens_per_s * seconds) // _CHUNK_STEP * _CHUNK_STEP
        return max(_MIN_CHUNK, min(_MAX_CHUNK, wanted))


def _chunk(num_pending: int, size: int) -> int:
    """Return how much of a prompt to take, never leaving one token alone (it would round differently)."""
    return size - 1 if num_pending == size + 1 else min(size, num_pending)


class Scheduler:
    """Owns the order of requests: waiting, then prefilling in turns, then decoding."""

    def __init__(self, max_running: int) -> None:
        self._max_running = max_running
        self._waiting: deque[Request] = deque()
        self._prefilling: deque[Request] = deque()
        self._decoding: list[Request] = []
        self.sizer = ChunkSizer()
        self.timer = StepTimer()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> list[Request]:
        """Requests that hold a slot."""
        return [*self._decoding, *self._prefilling]

    @property
    def requests(self) -> list[Request]:
        """All requests that have not ended."""
        return [*self.running, *self._waiting]

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._prefilling or self._decoding)

    def add(self, request: Request) -> None:
        """Put a new request at the end of the queue."""
        self._waiting.append(request)

    def admit(self, place: Callable[[Request], bool]) -> None:
        """Start waiting requests, first come first served, while `place` finds room for them."""
        while self._waiting and len(self._prefilling) + len(self._decoding) < self._max_running:
            if not place(self._waiting[0]):
                break
            self._prefilling.append(self._waiting.popleft())

    def plan(self) -> StepPlan:
        """Return the next step."""
        decode = tuple(self._decoding)
        if not self._prefilling:
            # Several rows fill a step already: there, more of them cost more than they bring.
            return StepPlan(None, 0, decode, decode[0].guess() if len(decode) == 1 else ())
        prefill = self._prefilling[0]
        size = self.sizer.size(_BESIDE_DECODE_S if decode else _ALONE_S)
        return StepPlan(prefill, _chunk(len(prefill.pending_ids()), size), decode)

    def prefilled(self, request: Request) -> None:
        """Move on after a chunk of `request`: to decoding when its prompt is done, else to the next one."""
        self._prefilling.remove(request)
        if request.is_prefilling:
            self._prefilling.append(request)
        else:
            self._decoding.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request that ended, wherever it is."""
        for group in (self._decoding, self._prefilling, self._waiting):
            if request in group:
                group.remove(request)
