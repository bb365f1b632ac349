"""Drafts: found where they stand, rarer where they do not pay, and without effect on any answer."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.cpu.model import CpuModel
from engine.engine import Engine, EngineOptions
from engine.runtime.sampling import FloatArray
from engine.runtime.speculation import MAX_DRAFT, PromptLookup, Speculation, StepTimer
from engine.types import Prompt, SamplingParams
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
    speculation.record(15, 4, paid=True)
    assert len(speculation.draft(ids, 100)) == 5


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
        timer.record(0.010)
    assert timer.pays(0.019, 2)
    assert not timer.pays(0.021, 2)
    timer.record(5.0)
    assert not timer.pays(0.030, 2), "one hiccup changes little"


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

    def draft(self, ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
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


async def test_a_real_model_answers_the_same_with_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 a run over several tokens differs from single steps by less than chance notices."""
    folder = make_tiny_model(tmp_path / "model", num_kv_heads=4)
    compute, lengths = CpuModel.decode_several, []

    def count(model: CpuModel, slot: int, ids: Sequence[int], num_past: int) -> FloatArray:
        lengths.append(len(ids))
        return compute(model, slot, ids, num_past)

    monkeypatch.setattr(CpuModel, "decode_several", count)
    monkeypatch.setattr(secrets, "randbits", lambda _num_bits: 7)
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
