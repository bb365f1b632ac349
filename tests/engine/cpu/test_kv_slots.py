"""The slots' bookkeeping against a memory that is really written, copied, moved and given back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.cpu.kv_slots import KVSlots, Placement
from tests.engine.fakes import HistoryMemory

NUM_SLOTS = 5
MAX_TOKENS = 60
MAX_LEN = 30
PAGE_TOKENS = 4
SEQUENCES = st.one_of(
    st.lists(st.integers(0, 2), min_size=1, max_size=20),
    st.builds(lambda tail: [7, 7, 7, 7, 7, 7, *tail], st.lists(st.integers(0, 1), max_size=12)),
)


def whole(num_tokens: int) -> int:
    """Round up to whole pages."""
    return -(-num_tokens // PAGE_TOKENS) * PAGE_TOKENS


class Conversations(RuleBasedStateMachine):
    """Requests come, grow and go; `running` maps slots to what their requests have computed."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = KVSlots(NUM_SLOTS, MAX_TOKENS, PAGE_TOKENS)
        self.memory = HistoryMemory(NUM_SLOTS, MAX_LEN + 1, PAGE_TOKENS)
        self.running: dict[int, tuple[list[int], int]] = {}
        self.forgotten: set[int] = set()
        self.ended: list[list[int]] = []
        self.expected: list[list[int]] = []
        """What was computed ahead since the last request came."""

    @rule(data=st.data(), growth=st.integers(1, 10))
    def begin(self, data: st.DataObject, growth: int) -> None:
        continued = st.sampled_from(self.ended or [[]]).map(lambda ids: [*ids, 1])
        ids = data.draw(st.one_of(SEQUENCES, continued))
        reserved = min(MAX_LEN, len(ids) + growth)
        if len(ids) >= MAX_LEN or not self.slots.has_room(reserved):
            return
        self.expected.clear()
        placement = self.slots.acquire(ids, reserved)
        assert placement.num_cached <= max(0, len(ids) - 2)
        self._move_in(placement, ids, reserved)
        self._write(placement.slot, ids[placement.num_cached :])

    @rule(data=st.data())
    def work_ahead(self, data: st.DataObject) -> None:
        before = [list(self.slots[index].ids) for index in range(NUM_SLOTS)]
        continued = st.sampled_from(self.ended or [[1]]).map(lambda ids: [*ids, 1, 0][:MAX_LEN])
        ids = data.draw(st.one_of(SEQUENCES, continued))
        num_kept = self.slots.find_ahead(ids)
        if num_kept < len(ids) - 1:
            placement = self.slots.acquire_ahead(ids)
            if placement is None:
                assert [list(self.slots[index].ids) for index in range(NUM_SLOTS)] == before
                return
            assert placement.num_cached == num_kept
            self._move_in(placement, ids, len(ids))
            self._write(placement.slot, ids[num_kept:])
            self.running.pop(placement.slot)
            if self.slots.release(placement.slot):
                self.memory.give_back(placement.slot)
            self.forgotten.discard(placement.slot)
        if not any(held[: len(ids) - 1] == ids[:-1] for held, _ in self.running.values()):
            self.expected.append(ids)
        assert self.slots.has_room(0) == (len(self.running) < NUM_SLOTS), "it takes no room from anybody"

    def _move_in(self, placement: Placement, ids: list[int], reserved: int) -> None:
        assert placement.slot not in self.running, "a busy slot was given away"
        given_back = {slot for slot, _ in placement.given_back}
        assert not given_back & self.running.keys(), "a busy slot was emptied"
        assert placement.copy_from not in given_back
        for slot, num_kept in placement.given_back:
            self.memory.give_back(slot, num_kept)
        if placement.copy_from is not None:
            self.memory.copy(placement.copy_from, placement.slot, placement.num_cached)
        self.running[placement.slot] = (list(ids[: placement.num_cached]), reserved)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), token=st.integers(0, 2))
    def grow(self, data: st.DataObject, token: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        if len(self.running[slot][0]) < self.running[slot][1]:
            self._write(slot, [token])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, keep: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        ids, _ = self.running.pop(slot)
        is_kept = keep and slot not in self.forgotten
        self.forgotten.discard(slot)
        if self.slots.release(slot, keep=keep):
            self.memory.give_back(slot)
        self.ended.append(ids)
        assert self.slots[slot].ids == (ids if is_kept else [])

    @rule()
    def forget(self) -> None:
        for slot in self.slots.forget():
            assert slot not in self.running
            self.memory.give_back(slot)
        self.forgotten = set(self.running)
        self.expected.clear()
        idle = [slot for slot in range(NUM_SLOTS) if slot not in self.running]
        assert all(self.slots[slot].ids == [] for slot in idle)
        assert (self.memory.ids[idle] == -1).all(), "nothing is left in the memory"

    @precondition(lambda self: self.running)
    @rule()
    def compact(self) -> None:
        active = sorted(self.running)
        pair = self.slots.compaction(active)
        if pair is None:
            return
        first, second = pair
        assert first in self.running
        assert second not in self.running
        assert min(active) < second < max(active), "the window must shrink"
        self.memory.swap(first, second, *(len(self.slots[slot].ids) for slot in pair))
        self.slots.swap(first, second)
        self.running[second] = self.running.pop(first)
        if first in self.forgotten:
            self.forgotten ^= {first, second}

    @rule()
    def lose_everything(self) -> None:
        self.slots = KVSlots(NUM_SLOTS, MAX_TOKENS, PAGE_TOKENS)
        self.memory.ids[:] = -1
        self.running.clear()
        self.forgotten.clear()
        self.expected.clear()

    @invariant()
    def what_a_slot_is_said_to_hold_is_there(self) -> None:
        for index in range(NUM_SLOTS):
            ids = self.slots[index].ids
            assert list(self.memory.ids[index, : len(ids)]) == ids
        for slot, (ids, _) in self.running.items():
            assert self.slots[slot].ids == ids

    @invariant()
    def what_is_kept_for_a_question_does_not_go_for_a_less_likely_one(self) -> None:
        for ids in self.expected:
            assert any(self.slots[index].ids[: len(ids) - 1] == ids[:-1] for index in range(NUM_SLOTS))

    @invariant()
    def no_slot_is_leaked(self) -> None:
        assert self.slots.busy == sorted(self.running)
        assert self.slots.has_room(1) <= (len(self.running) < NUM_SLOTS)
        self.slots.check()

    @invariant()
    def the_bound_is_held_even_if_all_grow_as_far_as_they_may(self) -> None:
        idle = [slot for slot in range(NUM_SLOTS) if slot not in self.running]
        kept = sum(whole(len(self.slots[slot].ids)) for slot in idle)
        grown = sum(whole(reserved) for _, reserved in self.running.values())
        assert self.slots.num_reserved == grown
        assert self.slots.num_tokens <= kept + grown <= MAX_TOKENS
        assert self.memory.num_touched <= MAX_TOKENS

    @invariant()
    def all_touched_memory_is_known(self) -> None:
        for index in range(NUM_SLOTS):
            touched = (self.memory.ids[index] != -1).nonzero()[0]
            assert self.slots[index].num_touched >= (whole(touched[-1] + 1) if len(touched) else 0)

    def _write(self, slot: int, ids: list[int]) -> None:
        held, _ = self.running[slot]
        self.memory.ids[slot, len(held) : len(held) + len(ids)] = ids
        self.slots.extend(slot, ids)
        held += ids


TestConversations = Conversations.TestCase
TestConversations.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def fill(slots: KVSlots, ids: list[int]) -> int:
    """Run a request that computes `ids`, and return its slot."""
    placement = slots.acquire(ids, len(ids))
    slots.extend(placement.slot, ids[placement.num_cached :])
    slots.release(placement.slot)
    return placement.slot


def test_the_next_turn_continues_its_own_slot() -> None:
    slots = KVSlots(4, 1000)
    first = fill(slots, list(range(100)))
    fill(slots, list(range(500, 600)))
    placement = slots.acquire([*range(100), 7, 8, 9], 200)
    assert (placement.slot, placement.num_cached, placement.copy_from) == (first, 100, None)


def test_the_last_two_ids_are_always_computed() -> None:
    slots = KVSlots(2, 1000)
    fill(slots, list(range(50)))
    assert slots.acquire(list(range(50)), 60).num_cached == 48
    assert KVSlots(2, 1000).acquire([1], 10).num_cached == 0


def test_a_common_system_prompt_is_copied_and_costs_nobody_their_turns() -> None:
    slots = KVSlots(3, 1000)
    system = list(range(30))
    first = fill(slots, [*system, *range(100, 200)])
    placement = slots.acquire([*system, *range(200, 210)], 60)
    assert placement.slot != first
    assert (placement.num_cached, placement.copy_from) == (30, first)
    assert slots[first].ids == [*system, *range(100, 200)]


def test_short_conversations_with_a_long_system_prompt_keep_their_slots_while_there_are_free_ones() -> None:
    slots = KVSlots(4, 1000)
    system = list(range(90))
    talks = [[*system, *range(start, start + 70)] for start in (200, 300, 400)]
    held = [fill(slots, talk) for talk in talks]
    assert sorted(held) == [0, 1, 2]
    for slot, talk in zip(held, talks, strict=True):
        assert fill(slots, [*talk, 7, 8, 9]) == slot
    fourth = fill(slots, [*system, *range(500, 570)])
    assert fourth not in held
    assert fill(slots, [*system, *range(600, 670)]) in {*held, fourth}, "there is no other slot left"


def test_a_common_prompt_is_taken_over_when_there_is_no_room_for_both() -> None:
    slots = KVSlots(3, 150)
    system = list(range(30))
    first = fill(slots, [*system, *range(100, 200)])
    placement = slots.acquire([*system, *range(200, 210)], 60)
    assert (placement.slot, placement.num_cached, placement.copy_from) == (first, 30, None)


def test_a_busy_slot_can_be_copied_from() -> None:
    slots = KVSlots(3, 1000)
    busy = slots.acquire(list(range(40)), 60)
    slots.extend(busy.slot, range(40))
    placement = slots.acquire(list(range(40)), 60)
    assert placement.slot != busy.slot
    assert (placement.num_cached, placement.copy_from) == (38, busy.slot)


def test_the_least_recently_used_conversation_goes_first() -> None:
    slots = KVSlots(3, 1000)
    held = [fill(slots, [base, *range(20)]) for base in (100, 200, 300)]
    assert sorted(held) == [0, 1, 2]
    fill(slots, [100, *range(20), 50, 51])
    assert slots.acquire([400, 1, 2, 3], 20).slot == held[1]


def test_idle_conversations_give_their_memory_back_in_order_of_age() -> None:
    slots = KVSlots(5, 100)
    held = [fill(slots, [base, *range(29)]) for base in (100, 200, 300)]
    placement = slots.acquire([400, 1, 2], 60)
    assert placement.given_back == tuple((slot, 0) for slot in held[:2])
    assert slots[held[2]].ids


def warm(slots: KVSlots, ids: list[int]) -> int | None:
    """Compute `ids` ahead, and return the slot; None without room."""
    placement = slots.acquire_ahead(ids)
    if placement is None:
        return None
    slots.extend(placement.slot, ids[placement.num_cached :])
    slots.release(placement.slot)
    return placement.slot


def test_what_is_expected_stays_while_what_is_less_likely_goes() -> None:
    slots = KVSlots(4, 1000)
    used = [fill(slots, [base, *range(20)]) for base in (100, 200)]
    first, second = (warm(slots, [base, *range(20)]) for base in (300, 400))
    assert not {first, second} & {*used}
    assert slots.find_ahead([200, *range(20)]) == 21
    assert warm(slots, [500, *range(20)]) == used[0], "nobody expects it"
    assert warm(slots, [600, *range(20)]) is None
    order = [slots.acquire([base, 1, 2], 3).slot for base in (1000, 2000, 3000, 4000)]
    assert order == [used[0], used[1], second, first], "the least likely goes first"


def test_computing_ahead_keeps_to_the_bound_and_to_what_is_copied() -> None:
    slots = KVSlots(3, 100)
    system = list(range(40))
    first = warm(slots, [*system, 7, 8, 9])
    assert warm(slots, [*range(500, 560)]) is None
    second = warm(slots, [*system, *range(200, 215)])
    assert {first, second} == {0, 1}
    assert slots.find_ahead([*system, *range(200, 215)]) == 55
    slots.check()


def test_a_conversation_that_has_just_ended_goes_before_what_is_expected() -> None:
    slots = KVSlots(4, 60)
    running = slots.acquire(list(range(20)), 20).slot
    slots.extend(running, range(20))
    first = warm(slots, [*range(100, 120)])
    slots.release(running)
    assert warm(slots, [*range(200, 230)]) is not None
    assert first is not None
    assert slots[first].ids == [*range(100, 120)]
    assert slots[running].ids == []


def test_what_was_computed_ahead_is_found_by_the_question() -> None:
    slots = KVSlots(3, 1000)
    slot = warm(slots, list(range(50)))
    placement = slots.acquire([*range(50), 7, 8, 9], 80)
    assert (placement.slot, placement.num_cached) == (slot, 50)


def test_what_nobody_used_for_long_is_given_back() -> None:
    slots = KVSlots(4, 1000)
    old, used, expected = (fill(slots, [base, *range(20)]) for base in (100, 200, 300))
    busy = slots.acquire([400, 1, 2], 10).slot
    assert slots.drop_unused() == []
    fill(slots, [200, *range(20), 50, 51])
    slots.find_ahead([300, *range(20)])
    assert slots.drop_unused() == [old]
    slots.find_ahead([300, *range(20)])
    assert slots.drop_unused() == [used], "what is still expected stays"
    assert slots.drop_unused() == [expected]
    slots.release(busy)
    assert slots.drop_unused() == []
    slots.check()


def test_running_requests_count_with_all_they_may_come_to_hold() -> None:
    slots = KVSlots(5, 100)
    idle = fill(slots, list(range(45)))
    slots.acquire([100, 1, 2], 50)
    assert slots[idle].ids
    assert slots.acquire([200, 1, 2], 50).given_back == ((idle, 0),)


def test_a_slot_that_held_a_long_conversation_gives_back_what_a_short_one_does_not_need() -> None:
    slots = KVSlots(1, 100)
    fill(slots, list(range(90)))
    assert slots.acquire([500, 1, 2], 10).given_back == ((0, 10),)
    assert slots[0].num_touched == 10


def test_a_sequence_takes_whole_blocks() -> None:
    slots = KVSlots(3, 100, block_size=16)
    assert slots.has_room(120), "one alone always fits"
    slots.acquire([1, 2, 3], 17)
    assert slots.num_reserved == 32
    assert slots.has_room(64)
    assert not slots.has_room(65), "80 tokens in whole blocks"


@pytest.mark.parametrize("wrong", ["ids", "kept", "bound"])
def test_wrong_books_are_found(wrong: str) -> None:
    slots = KVSlots(3, 100)
    fill(slots, list(range(50)))
    slots.acquire([900, 1, 2], 40)
    slots.check()
    if wrong == "ids":
        slots[0].ids.append(7)
    elif wrong == "kept":
        slots[0].is_kept = False
    else:
        slots[0].num_touched = 61
    with pytest.raises(RuntimeError, match="slot"):
        slots.check()


def test_compaction_waits_until_the_waste_has_paid_for_it() -> None:
    slots = KVSlots(3, 1000)
    for base in (100, 200, 300):
        slots.extend(slots.acquire([base], 300).slot, range(base, base + 200))
    slots.release(1)
    assert slots.compaction([0, 2]) is None
    pairs = [slots.compaction([0, 2]) for _ in range(20)]
    assert pairs[5] in {(0, 1), (2, 1)}, "400 tokens to move at 64 a step"
    assert pairs[:5] == [None] * 5
    assert slots.compaction([0]) is None
