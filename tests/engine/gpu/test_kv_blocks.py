"""The books of a paged cache: what is shared is the same, and nothing is ever lost."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.gpu.kv_blocks import SCRATCH_BLOCK, BlockTable, KVBlocks

SIZE = 4


def admit(books: KVBlocks, ids: Sequence[int], num_tokens: int = 0) -> BlockTable:
    """Acquire room for `ids`, and compute them."""
    table = books.acquire(ids, num_tokens or len(ids))
    assert table is not None
    books.extend(table, ids[len(table.ids) :])
    return table


def test_the_next_turn_computes_only_what_is_new() -> None:
    books = KVBlocks(20, SIZE)
    first = admit(books, range(10))
    books.release(first, keep=True)
    second = books.acquire(range(14), 20)
    assert second is not None
    assert second.ids == list(range(8)), "two full blocks"
    assert second.blocks[:2] == first.blocks[:2]


def test_the_last_two_tokens_of_a_prompt_are_always_computed() -> None:
    books = KVBlocks(20, SIZE)
    books.release(admit(books, range(12)), keep=True)
    for length, cached in ((8, 4), (9, 4), (10, 8), (12, 8), (14, 12)):
        table = books.acquire(range(length), length)
        assert table is not None
        assert len(table.ids) == cached
        books.release(table, keep=True)


def test_running_conversations_share_what_begins_alike_and_nothing_else() -> None:
    books = KVBlocks(20, SIZE)
    first = admit(books, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = admit(books, [1, 2, 3, 4, 5, 6, 7, 0, 9])
    third = admit(books, [0, 2, 3, 4, 5, 6, 7, 8, 9])
    assert first.blocks[0] == second.blocks[0]
    assert len({*first.blocks, *second.blocks, *third.blocks}) == 3 + 2 + 3
    assert books.num_tokens == 9 + 5 + 9
    books.check()


def test_what_two_computed_at_the_same_time_is_found_once_and_goes_on() -> None:
    books = KVBlocks(20, SIZE)
    tables = [books.acquire(range(9), 12) for _ in range(2)]
    for table in tables:
        assert table is not None
        books.extend(table, range(9))
    first, second = tables
    assert first is not None
    assert second is not None
    assert not {*first.blocks} & {*second.blocks}
    books.release(first, keep=False)
    books.release(second, keep=True)
    books.check()
    assert books.num_free == 19


def test_room_is_taken_for_the_whole_answer_and_made_from_the_least_recently_used() -> None:
    books = KVBlocks(9, SIZE)
    for start in (100, 200):
        books.release(admit(books, range(start, start + 12)), keep=True)
    running = books.acquire(range(8), 16)  # 4 of 8 blocks, of which 2 are free
    assert running is not None
    assert (len(books._idle), books.num_free) == (4, 4)
    old = books.acquire(range(100, 114), 14)
    assert old is not None
    assert old.ids == [100, 101, 102, 103], "its last blocks went first"
    assert books.acquire(range(300, 304), 4) is None, "nothing is free, and nothing is taken from who runs"
    books.release(running, keep=True)
    assert books.acquire(range(300, 304), 4) is not None


def test_a_failed_admission_changes_nothing() -> None:
    books = KVBlocks(6, SIZE)
    books.release(admit(books, range(12)), keep=True)
    running = admit(books, range(50, 58))
    assert books.acquire([*range(12), 77, 78], 20) is None
    books.check()
    assert (len(books._idle), books.num_free, books.num_running) == (3, 3, 1)
    books.release(running, keep=False)
    assert books.num_free == 5


def test_what_was_forgotten_is_never_found_again() -> None:
    books = KVBlocks(20, SIZE)
    books.release(admit(books, range(12)), keep=True)
    running = admit(books, range(50, 60), 20)
    books.forget()
    assert (len(books._idle), books.num_tokens) == (0, 10)
    books.extend(running, range(60, 68))
    books.release(running, keep=True)
    assert books.num_tokens == 0
    for ids in (range(12), range(50, 68)):
        table = books.acquire(ids, 20)
        assert table is not None
        assert table.ids == []
    books.check()


def test_what_is_not_kept_is_gone() -> None:
    books = KVBlocks(20, SIZE)
    books.release(admit(books, range(12)), keep=False)
    assert (books.num_tokens, books.num_free) == (0, 19)
    table = books.acquire(range(12), 12)
    assert table is not None
    assert table.ids == []


@pytest.mark.parametrize(("num_blocks", "size"), [(1, 4), (0, 4), (5, 0)])
def test_no_cache_is_refused(num_blocks: int, size: int) -> None:
    with pytest.raises(ValueError, match="are no cache"):
        KVBlocks(num_blocks, size)


def test_what_can_never_fit_is_refused_and_more_than_was_reserved_too() -> None:
    books = KVBlocks(4, SIZE)
    with pytest.raises(ValueError, match="13 tokens need 4 blocks of 3"):
        books.acquire(range(5), 13)
    table = admit(books, range(5), 6)
    with pytest.raises(ValueError, match="exceed the 6 reserved"):
        books.extend(table, [1, 2])
    books.check()


def warm(books: KVBlocks, ids: Sequence[int]) -> list[int]:
    """Compute `ids`, which fill blocks, ahead; return the blocks, none without room."""
    if books.find_ahead(ids):
        return books._find(ids)
    table = books.acquire_ahead(ids)
    if table is None:
        return []
    books.extend(table, ids[len(table.ids) :])
    books.release(table, keep=True)
    return table.blocks


def test_what_is_expected_stays_while_what_is_less_likely_goes() -> None:
    books = KVBlocks(9, SIZE)
    books.release(admit(books, range(100, 108)), keep=True)
    first, second, third = (warm(books, range(base, base + 8)) for base in (200, 300, 400))
    assert books.num_tokens == 32
    books.check()
    assert warm(books, range(500, 508)) == books._find(range(500, 508)), "nobody expects the oldest"
    assert not books._find(range(100, 108))
    assert not warm(books, range(600, 604))
    assert warm(books, range(200, 208)) == first, "it is there"
    books.release(admit(books, range(700, 708)), keep=False)
    order = [number for number in books._idle if number in {*first, *second, *third}]
    assert order == [*reversed(third), *reversed(second), *reversed(first)]
    books.check()


def test_nothing_that_runs_gives_way_to_what_is_computed_ahead() -> None:
    books = KVBlocks(5, SIZE)
    running = admit(books, range(8), 12)
    assert not warm(books, range(50, 58))
    assert len(warm(books, range(50, 54))) == 1
    books.release(running, keep=False)
    books.check()


@pytest.mark.parametrize("fault", ["users", "tokens", "free", "published"])
def test_wrong_books_are_noticed(fault: str) -> None:
    books = KVBlocks(8, SIZE)
    books.release(admit(books, range(9)), keep=True)
    table = admit(books, range(50, 56))
    if fault == "users":
        books._blocks[table.blocks[0]].num_users += 1
    elif fault == "tokens":
        books.num_tokens += 1
    elif fault == "free":
        books._free.append(table.blocks[0])
    else:
        books._published.popitem()
    with pytest.raises(RuntimeError, match="wrong"):
        books.check()


def side_by_side(books: KVBlocks) -> tuple[BlockTable, BlockTable]:
    """Compute two prompts that begin alike at the same time: the second has two private blocks."""
    first, second = books.acquire(range(9), 9), books.acquire(range(20), 20)
    assert first is not None
    assert second is not None
    books.extend(first, range(9))
    books.extend(second, range(20))
    return first, second


@pytest.mark.parametrize("keep", [True, False])
def test_what_built_on_a_block_that_went_is_found_all_the_same(keep: bool) -> None:
    books = KVBlocks(9, SIZE)
    first, second = side_by_side(books)
    books.release(first, keep=keep)
    other = admit(books, range(100, 112))  # takes every block that is not in use
    books.release(other, keep=False)
    books.release(second, keep=True)
    books.check()
    table = books.acquire(range(22), 22)
    assert table is not None
    assert table.ids == list(range(20))


def test_a_block_stays_as_long_as_what_another_conversation_builds_on_it() -> None:
    books = KVBlocks(12, SIZE)
    first, second = side_by_side(books)
    books.release(first, keep=True)
    books.release(second, keep=True)
    assert len(books._idle) == 5
    other = books.acquire(range(500, 528), 32)
    assert other is not None
    assert len(books._idle) == 3, "it has 8 of 11 blocks: two that were kept went"
    books.release(other, keep=False)
    table = books.acquire(range(22), 22)
    assert table is not None
    assert table.blocks[:3] == [*first.blocks[:2], second.blocks[2]]
    books.check()


def test_ten_thousand_joins_leaves_and_evictions_lose_nothing() -> None:
    chooser = random.Random(5)
    books = KVBlocks(40, SIZE)
    memory: list[list[int]] = [[-1] * SIZE for _ in range(40)]
    running: list[tuple[BlockTable, list[int]]] = []
    num_shared = num_refused = num_evicting = 0
    for _ in range(10_000):
        action = chooser.random()
        if action < 0.35 or not running:
            ids = [chooser.randrange(4)] * 9 + [chooser.randrange(2) for _ in range(chooser.randrange(1, 30))]
            num_tokens = len(ids) + chooser.randrange(12)
            num_cached = len(books._idle)
            table = books.acquire(ids, num_tokens)
            if table is None:
                num_refused += 1
                continue
            num_shared += len(table.ids) // SIZE
            num_evicting += num_cached - len(books._idle) > len(table.ids) // SIZE
            held = [token for number in table.blocks for token in memory[number]]
            assert held[: len(table.ids)] == table.ids == ids[: len(table.ids)]
            assert len(table.ids) <= max(0, len(ids) - 2)
            assert SCRATCH_BLOCK not in table.blocks
            running.append((table, ids))
        elif action < 0.75:
            table, ids = chooser.choice(running)
            room = table.num_reserved - len(table.ids)
            new = (ids[len(table.ids) :] or [7] * room)[: min(room, chooser.randrange(1, 15))]
            for position, token in enumerate(new, len(table.ids)):
                memory[table.blocks[position // SIZE]][position % SIZE] = token
            books.extend(table, new)
        elif action < 0.995:
            table, _ = running.pop(chooser.randrange(len(running)))
            books.release(table, keep=chooser.random() < 0.8)
        else:
            books.forget()
        books.check()
        for table, _ in running:
            held = [token for number in table.blocks for token in memory[number]]
            assert held[: len(table.ids)] == table.ids, "somebody wrote over it"
    assert min(num_shared, num_refused, num_evicting) > 100, "each of these was put to the test"
    for table, _ in running:
        books.release(table, keep=True)
    books.check()
    assert (books.num_free, books.num_running) == (39, 0)
    books.forget()
    assert (books.num_tokens, len(books._idle)) == (0, 0)


class Books(RuleBasedStateMachine):
    """A cache that writes what the books tell it to, and finds it there whenever they say so."""

    def __init__(self) -> None:
        super().__init__()
        self.books = KVBlocks(14, SIZE)
        self.memory = [[-1] * SIZE for _ in range(14)]
        self.running: list[tuple[BlockTable, list[int]]] = []
        self.expected: list[list[int]] = []

    def write(self, table: BlockTable, ids: Sequence[int]) -> None:
        first = len(table.ids)
        for position, token in enumerate(ids, first):
            self.memory[table.blocks[position // SIZE]][position % SIZE] = token
        self.books.extend(table, ids)

    @rule(family=st.integers(0, 3), length=st.integers(1, 30), more=st.integers(0, 12))
    def admit(self, family: int, length: int, more: int) -> None:
        chooser = random.Random(family)
        ids = [chooser.randrange(2) if index < 12 else chooser.randrange(5) for index in range(length)]
        before = self.books.num_free
        self.expected.clear()
        table = self.books.acquire(ids, length + more)
        if table is None:
            assert self.books.num_free == before
            assert self.running, "an empty cache has room"
            return
        assert SCRATCH_BLOCK not in table.blocks
        assert len(table.blocks) == -(-(length + more) // SIZE)
        self.running.append((table, ids))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 20), amount=st.integers(1, 20))
    def compute(self, which: int, amount: int) -> None:
        table, ids = self.running[which % len(self.running)]
        room = table.num_reserved - len(table.ids)
        pending = ids[len(table.ids) :] or [9] * room
        self.write(table, pending[: min(amount, room)])
        ids += table.ids[len(ids) :]

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 20), keep=st.booleans())
    def release(self, which: int, keep: bool) -> None:
        table, _ = self.running.pop(which % len(self.running))
        self.books.release(table, keep=keep)

    @rule(family=st.integers(0, 3), num_blocks=st.integers(1, 7))
    def work_ahead(self, family: int, num_blocks: int) -> None:
        chooser = random.Random(family)
        ids = [chooser.randrange(2) if index < 12 else 6 for index in range(SIZE * num_blocks)]
        before = list(self.books._idle)
        if not self.books.find_ahead(ids):
            table = self.books.acquire_ahead(ids)
            if table is None:
                assert list(self.books._idle) == before
                return
            self.write(table, ids[len(table.ids) :])
            self.books.release(table, keep=True)
        if not any(table.ids[:SIZE] == ids[:SIZE] for table, _ in self.running):
            self.expected.append(ids)

    @rule()
    def forget(self) -> None:
        self.books.forget()
        self.expected.clear()

    @invariant()
    def what_is_kept_for_a_question_does_not_go_for_a_less_likely_one(self) -> None:
        for ids in self.expected:
            assert len(self.books._find(ids)) * SIZE == len(ids)

    @invariant()
    def what_is_said_to_be_there_is_there(self) -> None:
        self.books.check()
        owners: dict[int, int] = {}
        for table, ids in self.running:
            held = [token for number in table.blocks for token in self.memory[number]]
            assert held[: len(table.ids)] == table.ids == ids[: len(table.ids)]
            for number in table.blocks[len(table.ids) // SIZE :]:
                owners[number] = owners.get(number, 0) + 1
        assert all(num == 1 for num in owners.values()), "nobody writes where another one does"

    def teardown(self) -> None:
        for table, _ in self.running:
            self.books.release(table, keep=True)
        assert self.books.num_free == 13


Books.TestCase.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestBooks = Books.TestCase
