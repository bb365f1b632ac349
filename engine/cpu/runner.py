"""Carries a step out on the CPU: one decode run over a window of slots, one prefill run for each prompt.

What of a prompt is on disk is read in the place of being computed. While there are no requests, the KV that
would be lost next is written there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engine.cpu.draft_window import DraftWindow
from engine.cpu.drafting import Drafter, Drafting
from engine.cpu.kv_disk import BLOCK_TOKENS, InPieces, KVDisk, is_possible
from engine.cpu.kv_slots import KVSlots, Placement
from engine.runtime.model_folder import DiskRoom
from engine.runtime.request import Request, Rows, is_all_kept, reusable
from engine.runtime.runner import CachedRunner, SeveralAtOnce, SlotModel, StepResult
from engine.runtime.sampling import FloatArray
from engine.runtime.scheduler import Chunk, PrefillPace, StepPlan
from engine.runtime.speculation import MAX_DRAFTING

_log = logging.getLogger(__name__)

_PATIENCE_S = 0.5
"""How long a prompt is read from disk before it counts whether computing it is faster."""
_MIN_MEASURED = 16
"""Tokens of prompts; the time of fewer says little."""


@dataclass(slots=True)
class _Reading:
    """Blocks on disk with which a prompt begins, and how the reading goes."""

    places: Sequence[int]
    num_read: int = 0
    seconds: float = 0.0


class SlotRunner(CachedRunner[SlotModel]):
    """A `Runner` over a `SlotModel`."""

    device = "cpu"
    pace = PrefillPace()
    max_drafting = MAX_DRAFTING

    def __init__(
        self,
        load: Callable[[], SlotModel],
        num_slots: int,
        max_kv_tokens: int,
        *,
        num_warm_rows: int = 1,
        min_exact_rows: int = 1,
        is_exact: bool = False,
        kv_disk: DiskRoom | None = None,
        load_drafter: Callable[[], Drafter] | None = None,
    ) -> None:
        """Load the model and warm it up with decode steps of up to `num_warm_rows` rows.

        From `min_exact_rows` rows on, the model computes a row the same way whatever else is in the step. If
        it `is_exact`, it always does, and several tokens of a sequence as it does single ones. `load_drafter`
        gives what drafts for it.
        """
        self._disk_room = kv_disk
        self._disk: KVDisk | None = None
        self._tokens_per_s = self.pace.first_tokens_per_s
        self.max_kv_tokens = max_kv_tokens
        self._num_slots = num_slots
        self._num_warm_rows = num_warm_rows
        self._min_exact_rows = min(min_exact_rows, num_slots)
        self.is_exact = is_exact
        super().__init__(load)
        self._drafting = Drafting(load_drafter() if load_drafter is not None else None)

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

    def use_idle_time(self) -> bool:
        """Write a block that is not on disk yet of what would be lost next."""
        if self._disk is None:
            return False
        # All of it counts as used before anything is written, so that none of it makes room for the rest.
        found = {
            slot: len(self._disk.find(self._slots[slot].ids)) * BLOCK_TOKENS
            for slot in self._slots.next_to_go(self._disk.max_tokens)
        }
        for slot, num_saved in found.items():
            ids = self._slots[slot].ids[: num_saved + BLOCK_TOKENS]
            if len(ids) == num_saved + BLOCK_TOKENS:
                try:
                    return self._disk.write(slot, ids)
                except OSError as error:
                    self._give_up_disk(error)
                    break
        return False

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
        num_cached = placement.num_cached
        places = self._disk.find(reusable(request.ids)) if self._disk is not None else []
        if len(places) * BLOCK_TOKENS >= num_cached + BLOCK_TOKENS:
            self._reading[request] = _Reading(places)
            num_cached -= num_cached % BLOCK_TOKENS  # only whole blocks are read, over what is there
            self._slots.shorten(placement.slot, num_cached)
        request.num_computed = request.num_cached = num_cached

    def draft(self, plan: StepPlan) -> StepPlan:
        return self._drafting.draft(plan)

    def confirm(self, request: Request, num_accepted: int) -> None:
        super().confirm(request, num_accepted)
        self._drafting.confirm(request, num_accepted)

    def step(self, plan: StepPlan) -> StepResult:
        rows: list[tuple[Request, Rows]] = []
        started = time.perf_counter()
        reads = any(chunk.request in self._reading for chunk in plan.prefill)
        for chunk in plan.prefill:
            if chunk.request in self._reading:
                is_beside = bool(plan.decode) or len(plan.prefill) > 1 or chunk.request.is_ahead
                self._read(chunk.request, self.pace.beside_s if is_beside else self.pace.alone_s)
                continue
            row = self._prefill(chunk)
            if row is not None:
                # The model keeps one prefill's logits; those of other prompts follow in this step.
                row = row if chunk is plan.prefill[-1] else row.copy()
                rows.append((chunk.request, row[None]))
        prefilled = time.perf_counter()
        prefill_s = 0.0 if reads else prefilled - started  # the speed of computing is not that of reading
        if prefill_s > 0 and plan.num_prefill >= _MIN_MEASURED:
            self._tokens_per_s += 0.3 * (plan.num_prefill / prefill_s - self._tokens_per_s)
        drafted_s: dict[Request, float] = {}
        if plan.decode:
            rows += self._decode_all(plan, drafted_s)
        decode_s = time.perf_counter() - prefilled
        self._drafting.note_step(plan, decode_s)
        return StepResult(tuple(rows), prefill_s, decode_s, drafted_s)

    def release(self, request: Request, *, keep: bool) -> None:
        self._reading.pop(request, None)
        self._drafting.release(request, keep=keep)
        slot = self._slot_of.pop(request, None)
        if slot is not None and self._slots.release(slot, keep=keep):
            self._model.kv.give_back(slot)

    def forget(self) -> None:
        self._reading.clear()
        self._drafting.forget()
        for slot in self._slots.forget():
            self._model.kv.give_back(slot)
        if self._disk is not None:
            try:
                self._disk.clear()
            except OSError as error:
                self._give_up_disk(error)

    def reload(self) -> None:
        self._disk = None  # it holds the memory of the model that goes
        super().reload()

    def drop_unused(self) -> None:
        self._drafting.forget()
        for slot in self._slots.drop_unused():
            self._model.kv.give_back(slot)

    def check(self) -> None:
        self._slots.check()
        if self._disk is not None:
            self._disk.check()
        if sorted(self._slot_of.values()) != self._slots.busy:
            raise RuntimeError("The slots in use are not those of the requests.")

    def _start_empty(self) -> None:
        self._slots = KVSlots(self._num_slots, self.max_kv_tokens, self._model.kv.page_tokens)
        self._slot_of: dict[Request, int] = {}
        self._reading: dict[Request, _Reading] = {}
        self._disk = self._open_disk()
        self._warm_up()

    def _open_disk(self) -> KVDisk | None:
        """Return the place on disk for KV, None where there is to be none or where it cannot be made."""
        if self._disk_room is None or not isinstance(self._model.kv, InPieces):
            return None
        if not is_possible():
            _log.warning("KV is not kept on disk: this system cannot do it.")
            return None
        try:
            return KVDisk(self._disk_room, self._model.kv)
        except OSError as error:
            _log.warning("KV is not kept on disk: %s", error)
            return None

    def _give_up_disk(self, error: OSError) -> None:
        """Go on without the disk."""
        _log.warning("KV is no longer kept on disk: %s", error)
        self._disk = None
        self._reading.clear()

    def _read(self, request: Request, seconds: float) -> None:
        """Read blocks of a prompt for about so long, at least one, unless computing them is faster."""
        reading, started = self._reading[request], time.perf_counter()
        while request in self._reading:
            first = request.num_computed
            try:
                if self._disk is not None:
                    place = reading.places[first // BLOCK_TOKENS]
                    self._disk.read(self._slot_of[request], first, place)
            except OSError as error:
                self._give_up_disk(error)
                return
            self._computed(request, request.ids[first : first + BLOCK_TOKENS])
            request.num_cached = request.num_computed
            reading.num_read += BLOCK_TOKENS
            spent_s = time.perf_counter() - started
            is_slow = reading.seconds + spent_s > max(_PATIENCE_S, reading.num_read / self._tokens_per_s)
            if is_slow or request.num_computed >= len(reading.places) * BLOCK_TOKENS:
                del self._reading[request]
            elif spent_s >= seconds:
                break
        reading.seconds += time.perf_counter() - started

    def _extend(self, request: Request, ids: Sequence[int]) -> None:
        self._slots.extend(self._slot_of[request], ids)

    def _prefill(self, chunk: Chunk) -> FloatArray | None:
        """Compute the next chunk of a prompt; return logits when it was the last."""
        request = chunk.request
        ids = request.pending_ids()[: chunk.num_tokens]
        logits = self._model.prefill(self._slot_of[request], ids, request.num_computed)
        self._computed(request, ids)
        return logits if request.num_computed == len(request.ids) else None

    def _decode_all(
        self, plan: StepPlan, drafted_s: dict[Request, float]
    ) -> list[tuple[Request, FloatArray]]:
        """Decode in one run what has no draft, then each request that has one; say how long these took.

        In this order: what rides along in the first run writes behind what a slot holds, where drafts go.
        """
        self._compact(plan.decode)
        model = self._model
        if not plan.drafts or not isinstance(model, SeveralAtOnce):
            return self._decode(plan.decode)
        if rows := self._decode_window(model, plan, drafted_s):
            return rows
        plain = [request for request in plan.decode if request not in plan.drafts]
        rows = self._decode(plain) if plain else []
        num_rows = len(self._slots)  # the most that a run of single tokens has
        for request, draft in plan.drafts.items():
            started = time.perf_counter()
            rows.append(self._decode_several(model, request, draft, num_rows))
            num_rows += 1 + len(draft)
            drafted_s[request] = time.perf_counter() - started
        return rows

    def _decode_window(
        self, model: SeveralAtOnce, plan: StepPlan, drafted_s: dict[Request, float]
    ) -> list[tuple[Request, FloatArray]]:
        """Compute the next tokens of all requests and what was drafted in one run; or nothing, if slower."""
        by_slot = {self._slot_of[request]: request for request in plan.decode}
        own = {slot: [request.ids[-1], *plan.drafts.get(request, ())] for slot, request in by_slot.items()}
        window = DraftWindow.over(self._slots, own)
        if not (window.pays and window.fits(self._slots.block_size, model.max_window_tokens)):
            return []
        started = time.perf_counter()
        logits = model.decode_window(window.first, window.ids, window.lengths, window.wanted)
        row_s = (time.perf_counter() - started) / len(logits)
        rows: list[tuple[Request, FloatArray]] = []
        first_row = 0
        for slot in sorted(own):
            request, number = by_slot[slot], len(own[slot])
            rows.append((request, logits[first_row : first_row + number]))
            first_row += number
            self._slots.touch(slot, request.num_computed + number)
            self._computed(request, request.ids[-1:])
            if request in plan.drafts:
                drafted_s[request] = number * row_s
        return rows

    def _decode(self, requests: Sequence[Request]) -> list[tuple[Request, FloatArray]]:
        by_slot = {self._slot_of[request]: request for request in requests}
        window = self._window(by_slot)
        # Slots of nobody here ride along: they write behind what they hold, which is never read.
        ids = [by_slot[slot].ids[-1] if slot in by_slot else 0 for slot in window]
        logits = self._model.decode(window[0], ids, [len(self._slots[slot].ids) for slot in window])
        for request in requests:
            self._computed(request, request.ids[-1:])
        return [(request, logits[slot - window[0], None]) for slot, request in by_slot.items()]

    def _decode_several(
        self, model: SeveralAtOnce, request: Request, draft: Sequence[int], first_row: int
    ) -> tuple[Request, FloatArray]:
        """Compute the next token of one request and what was drafted after it."""
        slot, num_past = self._slot_of[request], request.num_computed
        logits = model.decode_several(slot, [request.ids[-1], *draft], num_past, first_row)
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
