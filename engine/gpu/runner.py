"""Carries steps out over a paged KV cache, a step ahead of the host where that is possible.

While only answers are being made, the next step is started before the host has seen the last one's tokens:
the device has them already. The host turns tokens into text while the device works. A row whose answer
turned out to have ended, or to go on otherwise than the device chose, is left out of what comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from engine.gpu.kv_blocks import BlockTable, KVBlocks
from engine.gpu.step import GREEDY, PagedRow
from engine.runtime.request import Request, Rows
from engine.runtime.runner import CachedRunner, StepResult
from engine.runtime.sampling import CHOSEN_BY_HOST, SampledRow
from engine.runtime.scheduler import Chunk, PrefillPace, StepPlan


class BlockModel(Protocol):
    """A decoder over blocks, as `engine.gpu.model.PagedModel`."""

    num_blocks: int

    @property
    def block_size(self) -> int: ...

    @property
    def num_slots(self) -> int: ...

    def bucket(self, num_rows: int) -> int: ...

    def start(self, rows: Sequence[PagedRow]) -> Future[list[SampledRow]]: ...

    def follow(self, rows: Sequence[PagedRow | None]) -> Future[list[SampledRow]]: ...

    def saw(self, slot: int, ids: Iterable[int]) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Sequence:
    """Where a request lies.

    `is_marked`: the device knows its tokens. `chosen`: what the device chose last.
    """

    table: BlockTable
    slot: int
    is_marked: bool = False
    chosen: int | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    """A run under way and whose rows it has; None is a row of nobody. Of prompts, what it computes."""

    requests: tuple[Request | None, ...]
    rows: Future[list[SampledRow]]
    chunks: dict[Request, Sequence[int]] = field(default_factory=dict)


class PagedRunner(CachedRunner[BlockModel]):
    """A `Runner` over a `BlockModel`."""

    max_drafting = 1
    is_exact = False

    def __init__(self, load: Callable[[], BlockModel], device: str, pace: PrefillPace) -> None:
        """`load` returns a model that is warm and has its blocks; `device` is what it runs on."""
        self.device = device
        self.pace = pace
        self._decode_s = 0.0
        self._ahead: _Run | None = None
        super().__init__(load)

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._blocks.block_size

    @property
    def max_kv_tokens(self) -> int:
        """Tokens whose KV the cache can hold."""
        return (self._blocks.num_blocks - 1) * self._blocks.block_size

    @property
    def num_kv_tokens(self) -> int:
        """Tokens whose KV is held."""
        return self._blocks.num_tokens

    def place(self, request: Request) -> bool:
        """See `Runner.place`. Raises `ValueError` for a request that could never fit."""
        table = self._blocks.acquire(request.ids, request.num_needed) if self._free_slots else None
        return self._move_in(request, table)

    def place_ahead(self, request: Request) -> bool:
        """See `Runner.place_ahead`. What does not fill a block could not be kept, and is left out."""
        request.shorten(len(request.ids) // self.block_size * self.block_size)
        if self._blocks.find_ahead(request.ids):
            request.num_computed = len(request.ids)
            return True
        table = self._blocks.acquire_ahead(request.ids) if self._free_slots else None
        return self._move_in(request, table)

    def _move_in(self, request: Request, table: BlockTable | None) -> bool:
        if table is None:
            return False
        self._sequences[request] = _Sequence(table, self._free_slots.pop())
        request.num_computed = request.num_cached = len(table.ids)
        return True

    def step(self, plan: StepPlan) -> StepResult:
        """See `Runner.step`."""
        started_at = time.perf_counter()
        ahead, self._ahead = self._ahead, None
        served = {request for request in plan.decode if ahead is not None and self._serves(ahead, request)}
        rest = [request for request in plan.decode if request not in served]
        results: list[tuple[Request, Rows]] = []
        if plan.drafts and rest:
            results.append(self._verify(rest[0], plan.drafts[rest[0]]))
        elif rest or plan.prefill:
            started = self._start(rest, plan.prefill)
            if ahead is None and not plan.prefill:
                self._run_ahead(started, plan.decode)
            results += self._finish(started)
        elif ahead is not None:
            self._run_ahead(ahead, plan.decode)
        if ahead is not None:
            results += self._finish(ahead, served)
        seconds = time.perf_counter() - started_at
        if plan.prefill:
            beside_s = min(self._decode_s, 0.9 * seconds) if plan.decode else 0.0
            return StepResult(tuple(results), seconds - beside_s, beside_s)
        if not plan.drafts:
            self._decode_s = 0.8 * self._decode_s + 0.2 * seconds if self._decode_s else seconds
        return StepResult(tuple(results), 0.0, seconds)

    def release(self, request: Request, *, keep: bool) -> None:
        """See `Runner.release`. A run under way may still write where the sequence would have gone on."""
        sequence = self._sequences.pop(request, None)
        if sequence is not None:
            self._blocks.release(sequence.table, keep=keep)
            self._free_slots.append(sequence.slot)

    def forget(self) -> None:
        """See `Runner.forget`."""
        self._blocks.forget()

    def use_idle_time(self) -> bool:
        """See `Runner.use_idle_time`. There is nothing to do."""
        return False

    def drop_unused(self) -> None:
        """See `Runner.drop_unused`. A GPU's blocks are taken once and for all."""

    def check(self) -> None:
        """See `Runner.check`."""
        self._blocks.check()
        if self._blocks.num_running != len(self._sequences):
            raise RuntimeError("The sequences that have blocks are not the requests.")

    def reload(self) -> None:
        """See `Runner.reload`."""
        self._model.close()
        super().reload()

    def _start_empty(self) -> None:
        self._blocks = KVBlocks(self._model.num_blocks, self._model.block_size)
        self._sequences: dict[Request, _Sequence] = {}
        self._free_slots = list(reversed(range(self._model.num_slots)))
        self._ahead = None
        self._host_chose = False

    def _extend(self, request: Request, ids: Sequence[int]) -> None:
        self._blocks.extend(self._sequences[request].table, ids)

    def _start(self, decode: Sequence[Request], chunks: Sequence[Chunk]) -> _Run:
        """Start a run of the requests' next tokens and of chunks of prompts."""
        rows = [self._row(request, request.ids[-1:]) for request in decode]
        pending = {chunk.request: chunk.request.pending_ids()[: chunk.num_tokens] for chunk in chunks}
        rows += [self._row(request, ids) for request, ids in pending.items()]
        return _Run((*decode, *pending), self._model.start(rows), pending)

    def _row(self, request: Request, ids: Sequence[int]) -> PagedRow:
        """Return what is computed of a request; where that is its last, the next token is chosen."""
        sequence = self._sequences[request]
        past = len(sequence.table.ids)
        if past + len(ids) < len(request.ids):
            return PagedRow(ids, past, sequence.table.blocks, sequence.slot, GREEDY)
        if request.sampler.penalises and not sequence.is_marked:
            self._model.saw(sequence.slot, request.sampler.seen_ids)
            sequence.is_marked = True
        return PagedRow(ids, past, sequence.table.blocks, sequence.slot, request.sampler.device_row())

    def _serves(self, run: _Run, request: Request) -> bool:
        """Return whether a run that was started ahead is the next step of `request`."""
        return request in run.requests and self._sequences[request].chosen == request.ids[-1]

    def _run_ahead(self, run: _Run, decode: Sequence[Request]) -> None:
        """Start the step after `run`, over those of `decode` that go on unless they stop, where that pays."""
        speculation = decode[0].speculation if len(decode) == 1 else None
        if speculation is not None and not speculation.is_paused:
            return
        if self._host_chose or not all(request.sampler.fits_device for request in decode):
            return
        going_on = {request for request in decode if request.num_left > 1}
        if not going_on or self._model.bucket(len(going_on)) < self._model.bucket(len(run.requests)):
            return  # a smaller bucket is worth waiting for
        requests = tuple(request if request in going_on else None for request in run.requests)
        rows = [None if request is None else self._next_row(request) for request in requests]
        self._ahead = _Run(requests, self._model.follow(rows))

    def _next_row(self, request: Request) -> PagedRow:
        """Return the row of the token that the run under way chooses."""
        sequence = self._sequences[request]
        past, sampling = len(sequence.table.ids) + 1, request.sampler.device_row(1)
        return PagedRow((0,), past, sequence.table.blocks, sequence.slot, sampling)

    def _finish(self, run: _Run, wanted: set[Request] | None = None) -> list[tuple[Request, Rows]]:
        """Wait for a run and take note of what it computed, of all its requests or of those `wanted`."""
        finished: list[tuple[Request, Rows]] = []
        self._host_chose = False
        for request, row in zip(run.requests, run.rows.result(), strict=True):
            if request is None or (wanted is not None and request not in wanted):
                continue
            sequence = self._sequences[request]
            ids = run.chunks.get(request, request.ids[-1:])
            self._computed(request, ids)
            if request.num_computed == len(request.ids):
                sequence.chosen = row.token
                if row.logits is not None:
                    # The host chooses, and what was started ahead marks what the device would have chosen.
                    sequence.is_marked, self._host_chose = False, True
                finished.append((request, [row]))
        return finished

    def _verify(self, request: Request, draft: Sequence[int]) -> tuple[Request, Rows]:
        """Compute a request's next token and what was drafted after it, each token as a row of its own."""
        sequence, sampler = self._sequences[request], request.sampler
        past, blocks, nobody = len(sequence.table.ids), sequence.table.blocks, self._model.num_slots
        # The device would hold a repetition penalty against tokens that are only drafted.
        is_chosen = sampler.fits_device and not sampler.penalises
        rows = [
            PagedRow(
                (token,), past + i, blocks, nobody, sampler.device_row(i) if is_chosen else CHOSEN_BY_HOST
            )
            for i, token in enumerate((request.ids[-1], *draft))
        ]
        chosen = self._model.start(rows).result()
        self._computed(request, request.ids[-1:])
        sequence.is_marked, sequence.chosen = False, None
        return request, chosen
