"""What a cache is used for stays right where layers see a window, or rotate by several angles or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.cpu.model import CpuModel
from engine.describing.architecture import Precision
from engine.runtime.speculation import MAX_DRAFT, MAX_ROWS
from tests.engine.family_sources import MOST_APART, exact, folder_source, model, recorded_ids

NAMES = ["mistral", "gemma-2", "gemma-3", "phi-3", "phi-4-mini", "smollm3", "olmo-3", "qwen2-windows"]


@pytest.fixture(params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, CpuModel]:
    return request.param, model(folder_source(request.param), tmp_path / "model", Precision.FP32)


def apart(row: np.ndarray[tuple[int, ...], np.dtype[np.float32]], name: str, position: int) -> float:
    """Return how far logits are from those of a position."""
    return float(np.abs(row - exact(name)[position]).max())


def test_a_slot_goes_on_from_what_it_keeps_and_from_where_it_is_taken_back_to(
    made: tuple[str, CpuModel],
) -> None:
    name, cpu = made
    ids = recorded_ids(name)
    cpu.prefill(0, ids[:500], 0)
    wrong = [3 + (token + 1) % 380 for token in ids[300:420]]
    cpu.prefill(0, wrong, 300)  # an answer that is thrown away
    assert apart(cpu.prefill(0, ids[300:600], 300), name, 599) < MOST_APART


def test_a_prefix_is_copied_to_another_slot_and_both_go_on(made: tuple[str, CpuModel]) -> None:
    name, cpu = made
    ids = recorded_ids(name)
    cpu.prefill(0, ids[:400], 0)
    cpu.kv.copy(0, 1, 333)
    assert apart(cpu.prefill(1, ids[333:450], 333), name, 449) < MOST_APART
    both = cpu.decode(0, [ids[400], ids[450]], [400, 450])
    assert apart(both[0], name, 400) < MOST_APART
    assert apart(both[1], name, 450) < MOST_APART
    cpu.kv.swap(0, 1, 401, 451)
    both = cpu.decode(0, [ids[451], ids[401]], [451, 401])
    assert apart(both[0], name, 451) < MOST_APART
    assert apart(both[1], name, 401) < MOST_APART


def test_drafted_tokens_are_all_seen_at_once_and_taken_back(made: tuple[str, CpuModel]) -> None:
    name, cpu = made
    ids = recorded_ids(name)
    cpu.prefill(0, ids[:550], 0)
    cpu.decode_several(0, [ids[550], *range(10, 10 + MAX_DRAFT)], 550)  # all but the first are wrong
    rows = cpu.decode_several(0, ids[551 : 552 + MAX_DRAFT], 551).copy()
    for offset, row in enumerate(rows):
        assert apart(row, name, 551 + offset) < MOST_APART


def test_the_drafts_of_several_sequences_are_seen_in_one_step(made: tuple[str, CpuModel]) -> None:
    name, cpu = made
    ids = recorded_ids(name)
    cpu.prefill(0, ids[:400], 0)
    cpu.prefill(1, ids[:300], 0)
    num_slots = len(cpu.kv.arrays[0])
    plain = cpu.decode(1, ids[300:301], [300])
    first = cpu.decode_several(0, ids[400:404], 400, num_slots)
    second = cpu.decode_several(1, ids[301 : 301 + MAX_DRAFT], 301, num_slots + 4)
    for rows, position in ((plain, 300), (first, 400), (second, 301)):
        for offset, row in enumerate(rows):
            assert apart(row, name, position + offset) < MOST_APART
    with pytest.raises(ValueError, match="no room"):
        cpu.decode_several(0, ids[404:410], 404, num_slots + MAX_ROWS - 5)


def test_a_window_says_of_each_slot_what_single_runs_say(made: tuple[str, CpuModel]) -> None:
    name, cpu = made
    if not cpu.max_window_tokens:
        pytest.skip("there are no operators of our own for this processor")
    ids = recorded_ids(name)
    cpu.prefill(0, ids[:400], 0)
    cpu.prefill(1, ids[:317], 0)
    given = [ids[400:405], [ids[317], ids[318], 7, 7, 7]]
    rows = cpu.decode_window(0, given, (400, 317), (5, 2)).copy()
    for row, position in zip(rows, (*range(400, 405), 317, 318), strict=True):
        assert apart(row, name, position) < MOST_APART
    # What filled up is overwritten by what comes next.
    for slot, start in ((0, 405), (1, 319)):
        window = [[0, 0], [0, 0]]
        window[slot] = ids[start : start + 2]
        rows = cpu.decode_window(0, window, (405, 319), (2 * (slot == 0), 2 * (slot == 1)))
        assert max(apart(row, name, start + index) for index, row in enumerate(rows)) < MOST_APART
    for wrong in ((cpu.max_window_tokens - 4, 317), (-1, 317)):
        with pytest.raises(ValueError, match="Cannot decode"):
            cpu.decode_window(0, given, wrong, (5, 2))


def test_a_row_says_the_same_whatever_shares_the_step(made: tuple[str, CpuModel]) -> None:
    name, cpu = made
    ids = recorded_ids(name)
    cpu.prefill(0, ids[:200], 0)
    cpu.prefill(1, ids[:90], 0)
    alone = cpu.decode(0, ids[200:201], [200]).copy()
    beside = cpu.decode(0, [ids[200], ids[90]], [200, 90])
    np.testing.assert_array_equal(alone[0], beside[0])
