"""Which sequence's KV lies in which slot of the cache. Bookkeeping only: it holds token ids, not tensors.

A slot keeps the KV of one sequence. When its request ends the KV stays, so that the conversation's next
turn computes only what is new; the least recently used idle slot is overwritten first, and idle slots are
emptied when all slots together would take the memory of more than `max_tokens`.

A decode step runs over one contiguous window of slots. Idle or prefilling slots inside it ride along as
fillers, which costs about a row each: `compaction` names two slots to swap once that waste has added up
to the price of moving them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.runtime.request import is_all_kept, reusable

_MOST, _NEARLY_ALL = 0.5, 0.8
"""Shares of what a slot holds: so much of it must be a prefix of a sequence that goes on there."""
_TOKENS_MOVED_PER_ROW_STEP = 64
"""How many tokens' KV can be moved in about the time that one filler row adds to a step."""


@dataclass(slots=True)
class Slot:
    """Token ids whose KV is valid, first to last, and whether a request is using it."""

    ids: list[int] = field(default_factory=list)
    busy: bool = False
    last_used: float = 0.0
    num_touched: int = 0
    """Tokens whose memory it takes, in whole blocks."""
    num_reserved: int = 0
    """Tokens whose memory the request using it may come to take; 0 for an idle slot."""
    is_kept: bool = True
    """Whether its KV stays after the release of the request that is using it."""
    is_ahead: bool = False
    """Whether it is kept for a question that is expected, since the last one came."""
    is_used: bool = False
    """Whether anybody used or expected it since `drop_unused` was called."""

    @property
    def num_claimed(self) -> int:
        """Tokens whose memory this slot takes or may come to take."""
        return max(self.num_reserved, self.num_touched)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a sequence goes: the first `num_cached` ids are there after copying them from `copy_from`."""

    slot: int
    num_cached: int
    copy_from: int | None = None
    given_back: tuple[tuple[int, int], ...] = ()
    """Slots and how many of their first tokens keep their memory; the rest of it is to be given back."""


class KVSlots:
    """Owns the slots' bookkeeping. One thread only."""

    def __init__(self, num_slots: int, max_tokens: int, block_size: int = 1) -> None:
        """`max_tokens` bounds the tokens whose memory all slots take together, growth of busy ones included.

        Memory is taken in blocks of `block_size` tokens. What filler rows write does not count: one block of
        each slot at most.
        """
        self.block_size = block_size
        self._slots = [Slot() for _ in range(num_slots)]
        self._max_tokens = max_tokens
        self._tick = 0
        self._waste = 0

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def busy(self) -> list[int]:
        """Slots that requests are using, in order."""
        return [index for index, slot in enumerate(self._slots) if slot.busy]

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV is held, busy and idle."""
        return sum(len(slot.ids) for slot in self._slots)

    @property
    def num_reserved(self) -> int:
        """Tokens whose memory the busy slots may come to take together."""
        return sum(slot.num_reserved for slot in self._slots)

    def has_room(self, num_tokens: int) -> bool:
        """Tell whether a sequence of so many tokens can be acquired. One alone always can."""
        reserved = self.num_reserved
        fits = not reserved or reserved + self._whole(num_tokens) <= self._max_tokens
        return fits and len(self.busy) < len(self._slots)

    def acquire(self, ids: Sequence[int], num_tokens: int) -> Placement:
        """Take a slot for a sequence that begins with the prompt `ids` and may grow to `num_tokens`.

        Call only when it `has_room`.
        """
        for slot in self._slots:
            slot.is_ahead = False
        num_reserved = self._whole(num_tokens)
        shared = self._shared(reusable(ids))
        return self._acquire(ids, num_reserved, shared, self._choose(shared, num_reserved))

    def find_ahead(self, ids: Sequence[int]) -> int:
        """Return how many of `ids` a slot holds. One that holds all, but for one, is kept for them."""
        shared = self._shared(ids)
        found = max(range(len(self._slots)), key=shared.__getitem__)
        if is_all_kept(shared[found], ids) and not self._slots[found].busy:
            self._expect(self._slots[found])
        return shared[found]

    def acquire_ahead(self, ids: Sequence[int]) -> Placement | None:
        """Take a slot for a prompt that is computed ahead; None, changing nothing, where there is no room.

        What was computed or found ahead stays: the questions that are likelier to come are told first. Call
        only when `find_ahead` has not found all of it.
        """
        num_reserved, shared = self._whole(len(ids)), self._shared(ids)
        idle = [index for index, slot in enumerate(self._slots) if not (slot.busy or slot.is_ahead)]
        if not idle:
            return None
        chosen = self._choose(shared, num_reserved, idle)
        best = max(range(len(self._slots)), key=shared.__getitem__)
        donors = {best} if shared[best] > shared[chosen] else set()
        staying = {index for index, slot in enumerate(self._slots) if slot.busy or slot.is_ahead}
        num_staying = sum(self._slots[index].num_claimed for index in staying | donors)
        if num_staying + num_reserved > self._max_tokens:
            return None
        self._expect(self._slots[chosen])
        return self._acquire(ids, num_reserved, shared, chosen)

    def _shared(self, ids: Sequence[int]) -> list[int]:
        """Return how many of `ids` each slot begins with."""
        wanted = np.asarray(ids, np.int64)
        return [_common_prefix(slot.ids, wanted) for slot in self._slots]

    def _acquire(
        self, ids: Sequence[int], num_reserved: int, shared: Sequence[int], chosen: int
    ) -> Placement:
        """Take the slot `chosen`, with what it shares with `ids` or the one that shares most."""
        donor = max(range(len(self._slots)), key=shared.__getitem__)
        num_cached = shared[donor]
        copy_from = donor if shared[donor] > shared[chosen] else None
        slot = self._slots[chosen]
        given_back = [(chosen, num_reserved)] if slot.num_touched > num_reserved else []
        slot.num_touched = min(num_reserved, max(slot.num_touched, self._whole(num_cached)))
        slot.ids = list(ids[:num_cached])
        slot.busy = True
        slot.num_reserved = num_reserved
        self._use(slot)
        given_back += [(index, 0) for index in self._empty_beyond_bound(keep=copy_from)]
        return Placement(chosen, num_cached, copy_from, tuple(given_back))

    def extend(self, index: int, ids: Sequence[int]) -> None:
        """Record that the KV of `ids` was written after what slot `index` holds."""
        self._slots[index].ids.extend(ids)
        self.touch(index, len(self._slots[index].ids))

    def touch(self, index: int, num_tokens: int) -> None:
        """Record that the memory of a slot's first `num_tokens` tokens was written, valid or not."""
        self._slots[index].num_touched = max(self._slots[index].num_touched, self._whole(num_tokens))

    def release(self, index: int, *, keep: bool = True) -> bool:
        """End a request's use of a slot; return whether its memory is to be given back.

        Its KV stays for the next turn unless `keep` is false, or `forget` was called meanwhile.
        """
        slot = self._slots[index]
        slot.busy = False
        slot.num_reserved = 0
        self._use(slot)
        if keep and slot.is_kept:
            return False
        return self._empty(slot)

    def next_to_go(self, max_tokens: int) -> list[int]:
        """Return the idle slots that would be emptied next, until half of slots and memory would be free.

        Of at most `max_tokens` tokens.
        """
        num_taken = sum(slot.num_claimed for slot in self._slots)
        num_used = sum(slot.num_touched > 0 for slot in self._slots)
        found: list[int] = []
        idle = [index for index, slot in enumerate(self._slots) if not slot.busy and slot.ids]
        for index in sorted(idle, key=lambda index: self._slots[index].last_used):
            max_tokens -= len(self._slots[index].ids)
            is_half_free = 2 * num_taken <= self._max_tokens and 2 * num_used <= len(self._slots)
            if is_half_free or max_tokens < 0:
                break
            found.append(index)
            num_taken -= self._slots[index].num_touched
            num_used -= 1
        return found

    def shorten(self, index: int, num_tokens: int) -> None:
        """Record that only the KV of a slot's first tokens is valid from now on."""
        del self._slots[index].ids[num_tokens:]

    def drop_unused(self) -> list[int]:
        """Empty the idle slots that nobody used or expected since the last call; return those with memory."""
        emptied = []
        for index, slot in enumerate(self._slots):
            if not (slot.busy or slot.is_used) and self._empty(slot):
                emptied.append(index)
            slot.is_used = False
        return emptied

    def forget(self) -> list[int]:
        """Empty every idle slot, and each busy one as soon as it is released.

        Return the slots whose memory is to be given back.
        """
        emptied = []
        for index, slot in enumerate(self._slots):
            if slot.busy:
                slot.is_kept = False
            elif self._empty(slot):
                emptied.append(index)
        return emptied

    def check(self) -> None:
        """Raise `RuntimeError` where the books contradict themselves, or the bound does not hold."""
        for index, slot in enumerate(self._slots):
            num_allowed = slot.num_reserved if slot.busy else slot.num_touched
            is_marked = not slot.busy and (slot.num_reserved > 0 or not slot.is_kept)
            if is_marked or len(slot.ids) > min(num_allowed, slot.num_touched):
                raise RuntimeError(f"The books of slot {index} are wrong.")
        if sum(slot.num_claimed for slot in self._slots) > max(self._max_tokens, self.num_reserved):
            raise RuntimeError("The slots may come to take more memory than they are allowed.")

    def compaction(self, active: Sequence[int]) -> tuple[int, int] | None:
        """Return two slots to swap before a decode step over the slots `active`, or None.

        The outermost active slot changes places with a hole; the caller moves the KV and calls `swap`.
        """
        low, high = min(active), max(active)
        holes = [index for index in range(low, high + 1) if index not in active]
        if not holes:
            self._waste = 0
            return None
        self._waste += len(holes)
        outer = min((low, high), key=lambda index: len(self._slots[index].ids))
        hole = min(holes, key=lambda index: len(self._slots[index].ids))
        price = len(self._slots[outer].ids) + len(self._slots[hole].ids)
        if self._waste * _TOKENS_MOVED_PER_ROW_STEP < price:
            return None
        self._waste = 0
        return outer, hole

    def swap(self, first: int, second: int) -> None:
        """Record that two slots have changed places, and gave back the memory of more than they hold."""
        slots = self._slots
        slots[first], slots[second] = slots[second], slots[first]
        for slot in (slots[first], slots[second]):
            slot.num_touched = self._whole(len(slot.ids))

    def _whole(self, num_tokens: int) -> int:
        """Round up to whole blocks."""
        return -(-num_tokens // self.block_size) * self.block_size

    @staticmethod
    def _empty(slot: Slot) -> bool:
        """Forget what a slot holds; return whether it took any memory."""
        was_touched = slot.num_touched > 0
        slot.ids.clear()
        slot.num_touched = 0
        slot.is_kept, slot.is_ahead = True, False
        return was_touched

    def _use(self, slot: Slot) -> None:
        slot.is_used = True
        if not slot.is_ahead:
            self._tick += 1
            slot.last_used = self._tick

    def _expect(self, slot: Slot) -> None:
        """Keep a slot for a question that is expected: longer than those that are less likely to come."""
        slot.is_used = True
        if not slot.is_ahead:
            slot.last_used = self._tick + 1 / (2 + sum(other.is_ahead for other in self._slots))
            slot.is_ahead = True

    def _choose(self, shared: Sequence[int], num_reserved: int, idle: Sequence[int] | None = None) -> int:
        """Choose an idle slot: the one this sequence continues, else the emptiest or least recently used.

        A slot is continued when nearly all that it holds is a prefix of the new sequence; a mere common
        system prompt is copied instead, so that it does not cost another conversation its KV, unless there
        is no room for both. What is between the two goes on in a slot of its own while one is free.
        """
        if idle is None:
            idle = [index for index, slot in enumerate(self._slots) if not slot.busy]
        best = max(idle, key=shared.__getitem__)
        num_held, room = len(self._slots[best].ids), self._max_tokens - self.num_reserved - num_reserved
        fits_besides = sum(slot.num_claimed for slot in self._slots) + num_reserved <= self._max_tokens
        is_free = fits_besides and any(not self._slots[index].ids for index in idle)
        needed = _NEARLY_ALL if is_free else _MOST
        if shared[best] > needed * num_held or (shared[best] and self._slots[best].num_touched > room):
            return best
        return min(idle, key=lambda index: (bool(self._slots[index].ids), self._slots[index].last_used))

    def _empty_beyond_bound(self, keep: int | None) -> list[int]:
        """Empty idle slots, least recently used first, until all slots keep to the bound.

        What is kept for a question that is expected stays: `acquire` has ended that before.
        """
        emptied: list[int] = []
        total = sum(slot.num_claimed for slot in self._slots)
        idle = [
            index
            for index, slot in enumerate(self._slots)
            if not (slot.busy or slot.is_ahead) and slot.num_touched and index != keep
        ]
        for index in sorted(idle, key=lambda index: self._slots[index].last_used):
            if total <= self._max_tokens:
                break
            slot = self._slots[index]
            total -= slot.num_touched
            self._empty(slot)
            emptied.append(index)
        return emptied


def _common_prefix(held: Sequence[int], wanted: npt.NDArray[np.int64]) -> int:
    length = min(len(held), len(wanted))
    if length == 0 or held[0] != wanted[0]:
        return 0
    differs = np.flatnonzero(np.asarray(held[:length], np.int64) != wanted[:length])
    return int(differs[0]) if len(differs) else length
