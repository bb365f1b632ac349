"""KV on disk: what is read is what was written, by nobody else, and no fault of it ends an answer."""

from __future__ import annotations

import errno
import logging
import os
import random
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cpu import kv_disk
from engine.cpu import runner as cpu_runner
from engine.cpu.kv_buffers import KVBuffers
from engine.cpu.kv_disk import BLOCK_TOKENS, DiskBlocks, KVDisk
from engine.cpu.kv_slots import KVSlots
from engine.runtime.model_folder import DiskRoom
from engine.runtime.request import Request
from engine.runtime.runner import SlotModel
from engine.types import SamplingParams
from tests.engine.cpu.test_kv_slots import fill
from tests.engine.driver import Driver
from tests.engine.fakes import VOCAB_SIZE, HistoryMemory, make_request, run_alone
from tests.engine.runtime.test_runner import drive
from tests.engine.tiny_model import tiny_config

pytestmark = pytest.mark.skipif(not kv_disk.is_possible(), reason="this system cannot do it")

MAX_TOKENS = 160
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=3, seed=1)


def room(folder: Path, num_blocks: int) -> DiskRoom:
    """Return room for so many blocks of a `HistoryMemory`, whose tokens take 8 bytes."""
    return DiskRoom(folder, num_blocks * BLOCK_TOKENS * 8)


@settings(max_examples=100, deadline=None)
@given(
    num_blocks=st.integers(0, 6),
    sequences=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=40),
)
def test_what_is_found_is_what_was_written_there(num_blocks: int, sequences: list[list[int]]) -> None:
    blocks = DiskBlocks(num_blocks, 2)
    written: dict[int, tuple[int, ...]] = {}
    for ids in sequences:
        before = blocks.find(ids)
        for place, end in zip(before, range(2, 99, 2), strict=False):
            assert written[place] == tuple(ids[:end])
        for end in range(2 * len(before) + 2, len(ids) + 1, 2):
            added = blocks.add(ids[:end])
            if added is None:
                assert end // 2 > num_blocks, "there is room for all that fits"
                break
            written[added] = tuple(ids[:end])
        assert len(blocks.find(ids)) == min(len(ids) // 2, num_blocks)
        blocks.check()
    blocks.clear()
    assert all(blocks.find(ids) == [] for ids in sequences)


def test_the_least_recently_used_goes_first_and_a_beginning_after_what_builds_on_it() -> None:
    blocks = DiskBlocks(4, 2)
    for ids in ([1, 1], [1, 1, 2, 2], [5, 5], [5, 5, 6, 6]):
        blocks.add(ids)
    blocks.find([1, 1, 2, 2])
    blocks.add([7, 7])
    assert [len(blocks.find(ids)) for ids in ([1, 1, 2, 2], [5, 5, 6, 6], [7, 7])] == [2, 1, 1]


def test_kv_comes_back_as_it_was_in_another_slot(tmp_path: Path) -> None:
    memory = KVBuffers(tiny_config(), 3, 256)
    for array in memory.arrays:
        array[0, :, :200] = np.random.default_rng(1).normal(size=array[0, :, :200].shape)
    before = [array[0, :, : 3 * BLOCK_TOKENS].copy() for array in memory.arrays]
    disk = KVDisk(DiskRoom(tmp_path, 2**24), memory)
    ids = list(range(200))
    for end in range(BLOCK_TOKENS, 3 * BLOCK_TOKENS + 1, BLOCK_TOKENS):
        assert disk.write(0, ids[:end])
    memory.give_back(0)
    for number, place in enumerate(disk.find(ids)):
        disk.read(2, number * BLOCK_TOKENS, place)
    for array, values in zip(memory.arrays, before, strict=True):
        np.testing.assert_array_equal(array[2, :, : 3 * BLOCK_TOKENS], values)
        assert not array[2, :, 3 * BLOCK_TOKENS :].any()


def test_nobody_else_can_read_it_and_what_is_cleared_is_cut_off(tmp_path: Path) -> None:
    memory = HistoryMemory(1, 100)
    disk = KVDisk(room(tmp_path / "made", 4), memory)
    disk.write(0, range(BLOCK_TOKENS))
    found = os.fstat(disk._file.fileno())
    assert list((tmp_path / "made").iterdir()) == [], "it has no name"
    assert (found.st_nlink, stat.S_IMODE(found.st_mode)) == (0, 0o600)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    assert found.st_size == BLOCK_TOKENS * 8
    disk.clear()
    assert os.fstat(disk._file.fileno()).st_size == 0
    assert disk.find(range(BLOCK_TOKENS)) == []


def test_it_takes_no_more_than_it_may(tmp_path: Path) -> None:
    disk = KVDisk(room(tmp_path, 3), HistoryMemory(1, 100))
    for number in range(10):
        assert disk.write(0, [number] * BLOCK_TOKENS)
        assert os.fstat(disk._file.fileno()).st_size <= 3 * BLOCK_TOKENS * 8


def tokens(seed: int, length: int) -> list[int]:
    chooser = random.Random(seed)
    return [chooser.randrange(3, VOCAB_SIZE) for _ in range(length)]


def ask(driver: Driver, ids: Sequence[int]) -> Request:
    """Answer a prompt, look whether the answer is right, and use the idle time after it."""
    request = make_request(len(driver.finals), ids, PARAMS, MAX_TOKENS)
    driver.add(request)
    driver.run_until_idle()
    assert request.ids == run_alone(ids, PARAMS, MAX_TOKENS)
    while driver.runner.use_idle_time():
        driver.runner.check()
    return request


def evicted(folder: Path, num_blocks: int = 20) -> Driver:
    """Return a driver whose memory has lost a prompt of 100 tokens, `tokens(1, 100)`."""
    driver = Driver(4, 200, 2, MAX_TOKENS, kv_disk=room(folder, num_blocks))
    ask(driver, tokens(1, 100))
    ask(driver, tokens(2, 120))
    assert not driver.runner._slots.find_ahead(tokens(1, 100))
    driver.model.chunks.clear()
    return driver


def test_what_memory_lost_is_read_and_not_computed(tmp_path: Path) -> None:
    driver = evicted(tmp_path)
    request = ask(driver, [*tokens(1, 100), 9, 9])
    assert request.num_cached == 96
    assert driver.model.chunks == [6]
    completion = driver.finals[request.request_id].completion
    assert completion is not None
    assert (completion.usage.num_cached_tokens, completion.usage.num_computed_tokens) == (96, 6)


def test_only_what_would_go_next_is_written(tmp_path: Path) -> None:
    driver = Driver(4, 400, 2, MAX_TOKENS, kv_disk=room(tmp_path, 20))
    ask(driver, tokens(1, 100))
    assert len(driver.runner._disk._blocks) == 0, "less than half of the memory is taken"  # type: ignore[union-attr]
    ask(driver, tokens(2, 120))
    assert len(driver.runner._disk._blocks) == 3, "the older one"  # type: ignore[union-attr]


def test_slots_are_named_in_the_order_in_which_they_go() -> None:
    slots = KVSlots(8, 1000)
    old, middle, new = (fill(slots, [base, *range(240)]) for base in (300, 400, 500))
    assert slots.next_to_go(10_000) == [old]
    fill(slots, [600, *range(200)])
    assert slots.next_to_go(10_000) == [old, middle]
    assert slots.next_to_go(300) == [old], "as much as there is room for on disk"
    slots.find_ahead([300, *range(240)])
    assert slots.next_to_go(10_000) == [middle, new]
    assert KVSlots(4, 1000).next_to_go(10_000) == []


@pytest.mark.parametrize("seed", range(30))
def test_random_traffic_is_answered_as_alone(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    max_running = rng.randint(1, 4)
    disk = room(tmp_path, rng.choice((1, 4, 30)))
    driver = Driver(
        max_running + rng.randint(0, 3), rng.choice((160, 300)), max_running, MAX_TOKENS, kv_disk=disk
    )
    traffic = drive(seed, 400, driver, rate=rng.choice((0.02, 0.05, 0.2)))
    assert len(traffic.requests) > 3


def test_random_traffic_reads_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_read = 0
    read = KVDisk.read

    def counted(self: KVDisk, *args: Any) -> None:
        nonlocal num_read
        num_read += 1
        read(self, *args)

    monkeypatch.setattr(KVDisk, "read", counted)
    driver = Driver(4, 300, 2, MAX_TOKENS, kv_disk=room(tmp_path, 60))
    drive(7, 4000, driver, rate=0.02)
    assert num_read > 10


def test_what_was_forgotten_is_not_read(tmp_path: Path) -> None:
    driver = evicted(tmp_path)
    driver.runner.forget()
    assert ask(driver, tokens(1, 100)).num_cached == 0


def test_forgetting_ends_a_reading_and_not_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = evicted(tmp_path)
    monkeypatch.setattr(driver.runner, "pace", type(driver.runner.pace)(alone_s=0.0))
    request = make_request(9, tokens(1, 100), PARAMS, MAX_TOKENS)
    driver.add(request)
    driver.step()
    assert request.num_computed == BLOCK_TOKENS, "a block a step"
    driver.runner.forget()
    driver.run_until_idle()
    assert request.ids == run_alone(request.prompt.ids, PARAMS, MAX_TOKENS)
    assert request.num_cached == BLOCK_TOKENS
    assert driver.runner.num_kv_tokens == 0


@pytest.mark.parametrize("act", ["pwritev", "preadv"])
def test_a_disk_that_fails_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, act: str
) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    driver = evicted(tmp_path)
    monkeypatch.setattr(os, act, fail)
    with caplog.at_level(logging.WARNING):
        assert ask(driver, tokens(1, 100)).num_cached == (96 if act == "pwritev" else 0)
        for number in range(3, 6):
            ask(driver, tokens(number, 140))
    assert caplog.text.count("No space left on device") == 1


def test_a_file_that_is_too_short_is_no_kv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = evicted(tmp_path)
    assert driver.runner._disk is not None
    driver.runner._disk._file.truncate(BLOCK_TOKENS * 8 * 3 // 2)
    assert ask(driver, tokens(1, 100)).num_cached == BLOCK_TOKENS
    assert "could not be moved" in caplog.text


def test_where_there_is_no_place_for_it_all_goes_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    driver = Driver(2, 200, 1, MAX_TOKENS, kv_disk=DiskRoom(tmp_path / "file" / "below", 2**20))
    ask(driver, tokens(1, 100))
    assert "KV is not kept on disk" in caplog.text


def test_a_disk_slower_than_computing_is_given_up_for_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = evicted(tmp_path)
    monkeypatch.setattr(cpu_runner, "_PATIENCE_S", 0.0)
    driver.runner._tokens_per_s = 1e12
    assert ask(driver, tokens(1, 100)).num_cached == BLOCK_TOKENS


def test_a_model_that_is_loaded_anew_begins_with_an_empty_file(tmp_path: Path) -> None:
    driver = evicted(tmp_path)
    load = driver.runner._load

    def load_anew() -> SlotModel:
        assert driver.runner._disk is None, "there may be no room for the memory of both"
        return load()

    driver.runner._load = load_anew
    driver.runner.reload()
    assert driver.runner._disk is not None
    assert ask(driver, tokens(1, 100)).num_cached == 0


def test_what_is_computed_ahead_is_read_too(tmp_path: Path) -> None:
    driver = evicted(tmp_path)
    request = make_request(9, tokens(1, 100), PARAMS, MAX_TOKENS)
    request.is_ahead = True
    driver.runner._slots._max_tokens = 400  # else it would not take the place of the other
    assert driver.runner.place_ahead(request)
    driver.scheduler.add(request)
    while request.num_computed < 100:
        driver.runner.step(driver.scheduler.plan())
    driver.runner.release(request, keep=True)
    assert driver.model.chunks == [4]


@pytest.mark.parametrize("page_tokens", [1, 16])
def test_what_is_read_takes_no_more_memory_than_there_is(tmp_path: Path, page_tokens: int) -> None:
    driver = Driver(4, 320, 2, MAX_TOKENS, page_tokens=page_tokens, kv_disk=room(tmp_path, 30))
    for number in range(40):
        ask(driver, tokens(number % 4, 130))
        assert driver.model.kv.num_touched <= 320 + 4 * page_tokens
