"""Drafts: found where they stand, rarer where they do not pay, and without effect on any answer."""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.cpu.draft_window import DraftWindow
from engine.cpu.kv_slots import KVSlots
from engine.cpu.model import CpuModel
from engine.engine import Engine, EngineOptions
from engine.runtime.request import Request
from engine.runtime.sampling import FloatArray
from engine.runtime.speculation import (
    MAX_DRAFT,
    MAX_DRAFTING,
    MAX_ROWS,
    PromptLookup,
    Speculation,
    StepTimer,
)
from engine.types import FinishReason, Prompt, SamplingParams
from tests.engine.driver import Driver
from tests.engine.engine_stage import read
from tests.engine.fakes import make_request, run_alone
from tests.engine.tiny_model import make_tiny_model

MAX_TOKENS = 160
TEXT = [11, 12, 13, 14, 15, 16, 17, 18]


def test_what_followed_before_is_drafted() -> None:
    lookup = PromptLookup()
    assert lookup.draft([*TEXT, 1, 2, 11, 12, 13], 4) == (14, 15, 16, 17)
    assert lookup.draft([*TEXT, 1, 2, 11, 12, 13, 14], 2) == (15, 16)


def test_the_latest_place_counts() -> None:
    assert PromptLookup().draft([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1) == (5,)


def test_what_stood_nowhere_is_not_drafted() -> None:
    lookup = PromptLookup()
    for ids in ([], [1], [1, 2, 3], [1, 2, 3, 4], [1, 1], [2, 3, 1, 2, 1, 3, 2]):
        assert PromptLookup().draft(ids, 5) == ()
    assert lookup.draft(TEXT, 5) == ()


def test_a_repetition_is_drafted_to_go_on() -> None:
    assert PromptLookup().draft([1, 2, 1, 2, 1], 5) == (2, 1, 2, 1, 2)
    assert PromptLookup().draft([7, 7, 7, 7], 3) == (7, 7, 7)


def test_a_growing_sequence_is_looked_through_as_a_whole_one() -> None:
    rng = random.Random(0)
    ids = [rng.randint(0, 3) for _ in range(300)]
    growing = PromptLookup()
    for end in range(300):
        assert growing.draft(ids[:end], 6) == PromptLookup().draft(ids[:end], 6)


def test_drafts_that_are_right_become_longer() -> None:
    speculation, ids = Speculation(), [*range(3, 60), 3, 4, 5]
    lengths = []
    for _ in range(6):
        draft = speculation.draft(ids, 100)
        lengths.append(len(draft))
        speculation.record(len(draft), len(draft), paid=True)
    assert lengths == [1, 3, 7, 15, 15, 15]
    assert MAX_DRAFT == 15


def test_a_draft_that_was_partly_right_is_followed_by_a_shorter_one() -> None:
    speculation, ids = Speculation(), [*range(3, 60), 3, 4, 5]
    speculation.record(15, 15, paid=True)
    for num_accepted, length in ((4, 5), (6, 7), (9, 7), (13, 7)):
        speculation.record(15, num_accepted, paid=True)
        assert len(speculation.draft(ids, 100)) == length, (
            "seven and the token before it are computed at once"
        )


def test_drafts_that_do_not_pay_become_rare() -> None:
    speculation, ids = Speculation(), [5] * 10
    steps = []
    for step in range(1000):
        draft = speculation.draft(ids, 100)
        if draft:
            assert len(draft) == 1
            steps.append(step)
            speculation.record(1, 0, paid=False)
    assert steps[:5] == [0, 2, 6, 14, 30]
    assert len(steps) < 16
    # One that pays makes up for all.
    while not (draft := speculation.draft(ids, 100)):
        pass
    speculation.record(1, 1, paid=True)
    assert len(speculation.draft(ids, 100)) == 3


def test_the_room_that_is_left_bounds_a_draft() -> None:
    speculation = Speculation()
    speculation.record(15, 15, paid=True)
    assert len(speculation.draft([5] * 10, 2)) == 2


def test_a_draft_pays_if_its_tokens_came_no_slower_than_one_by_one() -> None:
    timer = StepTimer()
    assert timer.pays(9.0, 1), "before anything is known"
    for _ in range(50):
        timer.record(1, 0.010)
    assert timer.pays(0.019, 2)
    assert not timer.pays(0.021, 2)
    timer.record(1, 5.0)
    assert not timer.pays(0.030, 2), "one hiccup changes little"


def test_beside_others_a_draft_must_bring_as_much_as_a_step_of_all() -> None:
    timer = StepTimer()
    timer.record(1, 0.010)
    timer.record(4, 0.016)
    assert timer.pays(0.031, 8, 4)
    assert not timer.pays(0.033, 8, 4)
    # Two have drafts; the two others take 11 ms, where half of a step of four takes 8.
    costs = timer.costs(4, 0.061, {"a": 0.020, "b": 0.030})
    assert costs == {"a": pytest.approx(0.0215), "b": pytest.approx(0.0315)}
    assert timer.costs(4, 0.046, {"a": 0.020, "b": 0.021}) == {"a": 0.020, "b": 0.021}, "they were fast"
    assert timer.costs(1, 0.020, {"a": 0.020}) == {"a": 0.020}


def test_beside_others_a_draft_needs_more_that_stood_before_and_is_as_long() -> None:
    text = [*range(3, 60)]
    for num_said in range(12):
        ids = [*text, 70, *range(20, 20 + num_said)]
        draft = Speculation().draft(ids, 100, is_alone=False)
        length = min(num_said, 7) if num_said >= 5 else 0
        assert draft == tuple(range(20 + num_said, 20 + num_said + length))
        assert len(Speculation().draft(ids, 100)) == (num_said >= 3)
    assert len(Speculation().draft([*text, 70, *range(20, 50)], 100, is_alone=False)) == MAX_DRAFT
    assert len(Speculation().draft([7] * 40, 100, is_alone=False)) == MAX_DRAFT


PARAMS = {
    "greedy": SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=90),
    "greedy, penalised": SamplingParams(temperature=0.0, repetition_penalty=1.3, max_new_tokens=90),
    "sampled": SamplingParams(temperature=1.0, seed=3, max_new_tokens=90),
    "counted": SamplingParams(temperature=1.0, frequency_penalty=0.7, seed=5, max_new_tokens=90),
    "narrow": SamplingParams(temperature=0.3, top_k=2, seed=4, max_new_tokens=90),
}


class Foretold(Speculation):
    """Drafts what will come, sometimes wrongly, and always."""

    def __init__(self, ids: Sequence[int], seed: int) -> None:
        super().__init__()
        self._ids = ids
        self._random = random.Random(seed)

    def draft(self, ids: Sequence[int], max_tokens: int, *, is_alone: bool = True) -> tuple[int, ...]:
        length = min(self._random.randint(0, MAX_DRAFT), max_tokens)
        right = self._ids[len(ids) : len(ids) + length]
        return tuple(token if self._random.random() < 0.9 else 3 for token in right)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("seed", range(8))
def test_no_answer_changes(seed: int, params: SamplingParams) -> None:
    rng = random.Random(seed)
    driver = Driver(2, 400, 1, MAX_TOKENS)
    prompt = [rng.randint(3, 40) for _ in range(rng.randint(1, 80))]
    num_accepted = 0
    for number in range(3):
        expected = run_alone(prompt, params, MAX_TOKENS)
        request = make_request(number, prompt, params, MAX_TOKENS)
        request.speculation = Foretold(expected, seed)
        driver.add(request)
        driver.run_until_idle()
        assert request.ids == expected
        completion = driver.finals[number].completion
        assert completion is not None
        assert completion.usage.num_new_tokens == request.num_new
        assert completion.text == "".join(chr(33 + token) for token in expected[len(prompt) :] if token > 2)
        num_accepted += request.num_new - len(driver.plans)
        driver.plans.clear()
        prompt = [*expected[: rng.randint(1, len(expected))], *([7] * rng.randint(1, 5))][: MAX_TOKENS - 40]
    assert driver.model.drafts
    assert num_accepted > 0, "several tokens came in one step"


def test_no_answer_of_several_changes_and_all_books_stay_right() -> None:
    """One is never drafted, one is cancelled while it is drafted, and others follow in their slots."""
    num_drafts: Counter[int | str] = Counter()
    for seed in range(12):
        driver = _answer_several(random.Random(seed))
        num_drafts.update(len(plan.drafts) for plan in driver.plans)
        num_drafts["in one run"] += driver.model.num_windows
        num_drafts["beside plain ones"] += sum(
            0 < len(plan.drafts) < len(plan.decode) for plan in driver.plans
        )
    assert all(num_drafts[kind] > 5 for kind in (1, 2, 3, "beside plain ones", "in one run"))


def _answer_several(rng: random.Random) -> Driver:
    page_tokens = rng.choice((1, 4, 16))
    driver = Driver(6, 1600, rng.randint(2, MAX_DRAFTING), MAX_TOKENS, page_tokens=page_tokens)
    requests: list[Request] = []
    expected: list[list[int]] = []
    prompts = [[rng.randint(3, 40) for _ in range(rng.randint(2, 50))]]
    for number in range(8):
        params = SamplingParams(temperature=1.0, seed=number, max_new_tokens=rng.randint(20, 90))
        ids = [*rng.choice(prompts), *(rng.randint(3, 40) for _ in range(rng.randint(1, 9)))]
        expected.append(run_alone(ids, params, MAX_TOKENS))
        prompts.append(expected[number][: rng.randint(1, 60)])
        requests.append(make_request(number, ids, params, MAX_TOKENS))
        if number != 1:
            requests[number].speculation = Foretold(expected[number], number)
        driver.add(requests[number])
    doomed = requests[2]
    while driver.num_requests:
        plan = driver.step()
        driver.runner.check()
        assert requests[1] not in plan.drafts
        assert sum(1 + len(draft) for draft in plan.drafts.values()) <= MAX_ROWS
        if doomed in plan.drafts and doomed in driver.running:
            driver.end(doomed, doomed.finish(FinishReason.CANCELLED))
            expected[2] = expected[2][: len(doomed.ids)]
    assert [request.ids for request in requests] == expected
    assert len(driver.finals) == len(requests)
    return driver


def test_a_run_of_all_is_taken_where_it_computes_less_and_writes_no_more_than_a_page() -> None:
    slots = KVSlots(6, 1000, 16)
    for length in (30, 20, 47, 10):
        slots.acquire([5] * length, 100)
    for slot, length in enumerate((30, 20, 47, 10)):
        slots.extend(slot, [5] * length)

    def window(**lengths: int) -> DraftWindow:
        return DraftWindow.over(slots, {int(name[1:]): range(10, 10 + num) for name, num in lengths.items()})

    found = window(s1=4, s3=1)
    assert (found.first, found.wanted, found.lengths) == (1, [4, 0, 1], [20, 47, 10])
    assert [list(ids) for ids in found.ids] == [[10, 11, 12, 13], [0] * 4, [10, 0, 0, 0]]
    assert found.fits(16, 51)
    assert not found.fits(16, 50), "the slot that only fills up would hold too much"
    assert not found.fits(3, 51)
    assert found.pays
    assert not window(s1=4).pays, "one alone needs no window"
    assert window(s0=8, s1=8, s2=8, s3=8).pays
    assert not window(s0=16, s1=1, s2=1).pays, "much would only fill up"
    assert not window(s0=8, s5=8).pays
    assert not window(s0=14, s1=14, s2=14).pays, "so many rows there never are"


def test_where_many_are_answered_or_a_step_of_all_was_never_timed_there_are_no_drafts() -> None:
    for num_answers, is_timed, num_drafting in ((2, True, 2), (4, True, 4), (5, True, 0), (3, False, 0)):
        driver = Driver(8, 2000, 8, MAX_TOKENS)
        if not is_timed:
            driver.scheduler.timer = StepTimer()
        for number in range(num_answers):
            request = make_request(number, [*range(10, 30), *range(10, 18)], PARAMS["sampled"], MAX_TOKENS)
            request.speculation = Speculation()
            driver.add(request)
        driver.step()
        while driver.running[0].is_prefilling:
            driver.step()
        for request in driver.running:
            request.ids[-1] = 18  # as if it quoted
        assert len(driver.step().drafts) == num_drafting


async def test_a_real_model_answers_the_same_with_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 a run over several tokens differs from single steps by less than chance notices."""
    folder = make_tiny_model(tmp_path / "model", num_kv_heads=4)
    compute, lengths = CpuModel.decode_several, []

    def count(
        model: CpuModel, slot: int, ids: Sequence[int], num_past: int, first_row: int = 0
    ) -> FloatArray:
        lengths.append(len(ids))
        return compute(model, slot, ids, num_past, first_row)

    monkeypatch.setattr(CpuModel, "decode_several", count)
    monkeypatch.setattr(secrets, "randbits", lambda _num_bits: 7)
    monkeypatch.setattr(StepTimer, "pays", lambda *_: True)  # on a busy machine nothing pays for sure
    answers = {}
    for speculation, seed in ((False, None), (True, None), (True, 7)):
        options = EngineOptions(num_threads=1, max_concurrent=2, speculation=speculation)
        async with await Engine.open(folder, options) as engine:
            prompt = Prompt(tuple([5, 6, 7, 8, 9] * 12))
            params = SamplingParams(temperature=0.3, repetition_penalty=1.0, max_new_tokens=300, seed=seed)
            completion = await read(engine.generate(prompt, params))
        answers[speculation, seed] = (
            completion.text,
            completion.usage.num_new_tokens,
            max(lengths, default=1),
        )
        lengths.clear()
    texts, counts, longest = zip(*answers.values(), strict=True)
    assert len(set(texts)) == len(set(counts)) == 1
    assert counts[0] > 100
    assert longest[0] == longest[2] == 1, "switched off, and an answer that must be reproducible"
    assert longest[1] > 4, "the tiny model repeats itself"
