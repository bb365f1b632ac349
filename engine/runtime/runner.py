"""What the worker needs of a model and its cache, and what the CPU's runner needs of a decoder with slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

from engine.runtime.request import Request, Rows
from engine.runtime.sampling import FloatArray
from engine.runtime.scheduler import PrefillPace, StepPlan

M = TypeVar("M")


class KVMemory(Protocol):
    """The tensors behind the slots. page_tokens: tokens whose KV fills whole pages of memory."""

    @property
    def page_tokens(self) -> int: ...

    def copy(self, source: int, target: int, num_tokens: int) -> None: ...

    def swap(self, first: int, second: int, num_first: int, num_second: int) -> None: ...

    def give_back(self, slot: int, num_kept: int = 0) -> None: ...


class SlotModel(Protocol):
    """A decoder with slots, as `engine.cpu.model.CpuModel`."""

    @property
    def kv(self) -> KVMemory: ...

    def prefill(self, slot: int, ids: Sequence[int], num_past: int) -> FloatArray: ...

    def decode(self, first_slot: int, ids: Sequence[int], lengths: Sequence[int]) -> FloatArray: ...


@runtime_checkable
class SeveralAtOnce(Protocol):
    """A `SlotModel` that can say what follows each of several tokens in one run, so that a draft pays.

    Each run's rows follow those of the step's runs before it: `first_row` says how many these are.
    """

    def decode_several(
        self, slot: int, ids: Sequence[int], num_past: int, first_row: int = 0
    ) -> FloatArray: ...

    @property
    def max_window_tokens(self) -> int: ...

    def decode_window(
        self, first_slot: int, ids: Sequence[Sequence[int]], lengths: Sequence[int], wanted: Sequence[int]
    ) -> FloatArray: ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """The rows of each request whose next token can be told now; valid until the next step.

    rows: one each. Of a request with a draft up to 1 + its tokens: a runner need not compute them.
    decode_s: of all that is decoded; drafted_s: of that what requests with drafts took, each by itself.
    """

    rows: tuple[tuple[Request, Rows], ...]
    prefill_s: float
    decode_s: float
    drafted_s: Mapping[Request, float] = field(default_factory=dict)


class Runner(Protocol):
    """What the worker needs of a model and its cache. One thread only.

    device: what the model runs on. pace: how much of prompts a step may compute. max_drafting: requests
    that are decoded at once where drafts are of use. is_exact: whether what follows a token comes out bit for
    bit alike however many tokens are computed at once, and whatever else is. block_size: tokens of KV that
    are given together, so that each request takes a multiple of it.
    """

    device: str
    is_exact: bool
    pace: PrefillPace
    max_drafting: int

    @property
    def block_size(self) -> int: ...

    def place(self, request: Request) -> bool:
        """Give `request` its place in the cache; False, changing nothing, where there is no room."""

    def place_ahead(self, request: Request) -> bool:
        """Give a prompt that is computed ahead a place; False, changing nothing, where there is no room.

        It takes the place of nothing that this method has found or placed since the last `place`. Where the
        prompt is kept already, it gets no place, and `num_computed` says so.
        """

    def draft(self, plan: StepPlan) -> StepPlan:
        """Return the plan of the next step, with guesses of a small model where there is one and they pay."""

    def step(self, plan: StepPlan) -> StepResult:
        """Compute a step. Any exception means that the cache can no longer be trusted."""

    def confirm(self, request: Request, num_accepted: int) -> None:
        """Keep the KV of the last draft's first `num_accepted` tokens, which came out as drafted."""

    def release(self, request: Request, *, keep: bool) -> None:
        """Take back a request's place; `keep` its KV for the conversation's next turn."""

    def forget(self) -> None:
        """Let go of all KV that no request uses, and of the others' when they are released."""

    def use_idle_time(self) -> bool:
        """Do a short piece of what may be done while there are no requests; False where nothing is left."""

    def drop_unused(self) -> None:
        """Give the memory back of KV that nobody used since the last call."""

    def reload(self) -> None:
        """Start over with a fresh model and an empty cache after a fault."""

    def check(self) -> None:
        """Raise `RuntimeError` where the books of the cache do not agree."""

    @property
    def num_kv_tokens(self) -> int:
        """Tokens whose KV is held."""

    @property
    def max_kv_tokens(self) -> int:
        """Tokens whose KV may be held."""


class CachedRunner(ABC, Generic[M]):
    """The rules of a `Runner` that hold for every kind of cache."""

    def __init__(self, load: Callable[[], M]) -> None:
        self._load = load
        self._model = load()
        self._start_empty()

    @abstractmethod
    def _start_empty(self) -> None:
        """Begin with an empty cache over `_model`."""

    @abstractmethod
    def _extend(self, request: Request, ids: Sequence[int]) -> None:
        """Take note in the cache's books that the KV of `ids` lies behind what `request` had."""

    def draft(self, plan: StepPlan) -> StepPlan:
        """See `Runner.draft`. There is no small model."""
        return plan

    def confirm(self, request: Request, num_accepted: int) -> None:
        """See `Runner.confirm`."""
        self._computed(request, request.pending_ids()[:num_accepted])

    def reload(self) -> None:
        """See `Runner.reload`."""
        del self._model  # first, since there may be no room for two
        self._model = self._load()
        self._start_empty()

    def _computed(self, request: Request, ids: Sequence[int]) -> None:
        self._extend(request, ids)
        request.num_computed += len(ids)
