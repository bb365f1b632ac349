"""Carries a step out on the CPU: one decode run over a window of slots, one prefill run for each prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from engine.cpu.kv_slots import KVSlots, Placement
from engine.runtime.request import Request, Rows, is_all_kept
from engine.runtime.runner import CachedRunner, SeveralAtOnce, SlotModel, StepResult
from engine.runtime.sampling import FloatArray
from engine.runtime.scheduler import Chunk, PrefillPace, StepPlan


class SlotRunner(CachedRunner[SlotModel]):
    """A `Runner` over a `SlotModel`."""

    device = "cpu"
    pace = PrefillPace()

    def __init__(
        self,
        load: Callable[[], SlotModel],
        num_slots: int,
        max_kv_tokens: int,
        *,
        num_warm_rows: int = 1,
        min_exact_rows: int = 1,
    ) -> None:
        """Load the model and warm it up with decode steps of up to `num_warm_rows` rows.

        From `min_exact_rows` rows on, the model computes a row the same way whatever else is in the step.
        """
        self.max_kv_tokens = max_kv_tokens
        self._num_slots = num_slots
        self._num_warm_rows = num_warm_rows
        self._min_exact_rows = min(min_exact_rows, num_slots)
        super().__init__(load)

    @property
    def block_size(self) -> int:
        return self._slots.block_size

    @property
    def num_kv_tokens(self) -> int:
        return self._slots.num_tokens

    def place(self, request: Request) -> bool:
        if not self._slots.has_room(request.num_needed):
            return False
        self._move_in(request, self._slots.acquire(request.ids, request.num_needed))
        return True

    def place_ahead(self, request: Request) -> bool:
        if is_all_kept(num_kept := self._slots.find_ahead(request.ids), request.ids):
            request.num_computed = num_kept
            return True
        placement = self._slots.acquire_ahead(request.ids)
        if placement is not None:
            self._move_in(request, placement)
        return placement is not None

    def _move_in(self, request: Request, placement: Placement) -> None:
        for slot, num_kept in placement.given_back:
            self._model.kv.give_back(slot, num_kept)
        if placement.copy_from is not None:
            self._model.kv.copy(placement.copy_from, placement.slot, placement.num_cached)
        self._slot_of[request] = placement.slot
        request.num_computed = request.num_cached = placement.num_cached

    def step(self, plan: StepPlan) -> StepResult:
        rows: list[tuple[Request, Rows]] = []
        started = time.perf_counter()
        for chunk in plan.prefill:
            row = self._prefill(chunk)
            if row is not None:
                # The model keeps one prefill's logits; those of other prompts follow in this step.
                row = row if chunk is plan.prefill[-1] else row.copy()
                rows.append((chunk.request, row[None]))
        prefilled = time.perf_counter()
        if plan.draft and isinstance(self._model, SeveralAtOnce):
            rows.append(self._decode_several(self._model, plan.decode[0], plan.draft))
        elif plan.decode:
            rows += self._decode(plan.decode)
        return StepResult(tuple(rows), prefilled - started, time.perf_counter() - prefilled)

    def release(self, request: Request, *, keep: bool) -> None:
        slot = self._slot_of.pop(request, None)
        if slot is not None and self._slots.release(slot, keep=keep):
            self._model.kv.give_back(slot)

    def forget(self) -> None:
        for slot in self._slots.forget():
            self._model.kv.give_back(slot)

    def drop_unused(self) -> None:
        for slot in self._slots.drop_unused():
            self._model.kv.give_back(slot)

    def check(self) -> None:
        self._slots.check()
        if sorted(self._slot_of.values()) != self._slots.busy:
            raise RuntimeError("The slots in use are not those of the requests.")

    def _start_empty(self) -> None:
        self._slots = KVSlots(self._num_slots, self.max_kv_tokens, self._model.kv.page_tokens)
        self._slot_of: dict[Request, int] = {}
        self._warm_up()

    def _extend(self, request: Request, ids: Sequence[int]) -> None:
        self._slots.extend(self._slot_of[request], ids)

    def _prefill(self, chunk: Chunk) -> FloatArray | None:
        """Compute the next chunk of a prompt; return logits when it was the last."""
        request = chunk.request
        ids = request.pending_ids()[: chunk.num_tokens]
        logits = self._model.prefill(self._slot_of[request], ids, request.num_computed)
        self._computed(request, ids)
        return logits if request.num_computed == len(request.ids) else None

    def _decode(self, requests: Sequence[Request]) -> list[tuple[Request, FloatArray]]:
        self._compact(requests)
        by_slot = {self._slot_of[request]: request for request in requests}
        window = self._window(by_slot)
        # Slots of nobody here ride along: they write behind what they hold, which is never read.
        ids = [by_slot[slot].ids[-1] if slot in by_slot else 0 for slot in window]
        logits = self._model.decode(window[0], ids, [len(self._slots[slot].ids) for slot in window])
        for request in requests:
            self._computed(request, request.ids[-1:])
        return [(request, logits[slot - window[0], None]) for slot, request in by_slot.items()]

    def _decode_several(
        self, model: SeveralAtOnce, request: Request, draft: Sequence[int]
    ) -> tuple[Request, FloatArray]:
        """Compute the next token of one request and what was drafted after it."""
        slot, num_past = self._slot_of[request], request.num_computed
        logits = model.decode_several(slot, [request.ids[-1], *draft], num_past)
        self._slots.touch(slot, num_past + 1 + len(draft))
        self._computed(request, request.ids[-1:])
        return request, logits

    def _window(self, by_slot: Mapping[int, Request]) -> range:
        """Return the slots to run over: all that decode, and a filler for an answer that is reproducible."""
        first, end = min(by_slot), max(by_slot) + 1
        if any(request.params.is_reproducible for request in by_slot.values()):
            end = min(len(self._slots), max(end, first + self._min_exact_rows))
            first = min(first, end - self._min_exact_rows)
        return range(first, end)

    def _compact(self, requests: Sequence[Request]) -> None:
        pair = self._slots.compaction([self._slot_of[request] for request in requests])
        if pair is None:
            return
        first, second = pair
        self._model.kv.swap(first, second, *(len(self._slots[slot].ids) for slot in pair))
        self._slots.swap(first, second)
        moved = {first: second, second: first}
        self._slot_of = {request: moved.get(slot, slot) for request, slot in self._slot_of.items()}

    def _warm_up(self) -> None:
        """Run each kind of step once, so that the first user does not pay for lazy set-up."""
        self._model.prefill(0, [0] * 16, 0)
        for num_rows in range(1, self._num_warm_rows + 1):
            self._model.decode(0, [0] * num_rows, [0] * num_rows)
        for slot in range(self._num_warm_rows):
            self._model.kv.give_back(slot)
