"""A small model drafts: its cache stays in step, and no answer depends on it."""

from __future__ import annotations

import itertools
import random
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from engine.cpu.drafting import Drafter
from engine.cpu.runner import SlotRunner
from engine.runtime.draft_pace import LONGEST, DraftPace
from engine.runtime.guessing import distribution
from engine.runtime.request import Request
from engine.runtime.sampling import FloatArray
from engine.runtime.speculation import Speculation
from engine.types import FinishReason, SamplingParams
from tests.engine.driver import RunnerDriver
from tests.engine.fakes import (
    NEVER_WRITTEN,
    STOP_ID,
    VOCAB_SIZE,
    HistoryModel,
    history_logits,
    make_request,
    run_alone,
)

MAX_TOKENS = 200
LONG = SamplingParams(0.9, 0.95, 12, 0.0, 1.0, max_new_tokens=80)


def small_logits(history: Sequence[int] | npt.NDArray[np.int64]) -> FloatArray:
    """Return what a small model says: much the same as the large one, and two tokens that only it knows."""
    history = np.asarray(history, np.int64)
    mine = 0.7 * history_logits(history) + 0.4 * history_logits(history[::-1])
    return np.concatenate([mine, np.full(2, 20.0)]).astype(np.float32)


class SmallModel(HistoryModel):
    """A `HistoryModel` with a slot that says otherwise."""

    def __init__(self) -> None:
        super().__init__(1, MAX_TOKENS)
        self.num_decoded = 0

    def prefill(self, slot: int, ids: Sequence[int], num_past: int) -> FloatArray:
        super().prefill(slot, ids, num_past)
        return small_logits(self.kv.ids[slot, : num_past + len(ids)])

    def decode(self, first_slot: int, ids: Sequence[int], lengths: Sequence[int]) -> FloatArray:
        super().decode(first_slot, ids, lengths)
        self.num_decoded += 1
        return small_logits(self.kv.ids[first_slot, : lengths[0] + 1])[None]


class Stage:
    """A driver over a large model for which a small one drafts."""

    def __init__(self, max_running: int = 1) -> None:
        self.small = SmallModel()
        runner = SlotRunner(
            lambda: HistoryModel(4, MAX_TOKENS),
            4,
            1000,
            load_drafter=lambda: Drafter(self.small, MAX_TOKENS, VOCAB_SIZE),
        )
        self.driver = RunnerDriver(runner, max_running)
        self.numbers = itertools.count()
        self.num_guesses = 0

    def add(self, ids: Sequence[int], params: SamplingParams = LONG) -> Request:
        request = make_request(next(self.numbers), ids, params, MAX_TOKENS)
        request.speculation = Speculation()
        self.driver.add(request)
        return request

    def step(self) -> None:
        """Step, and see that each guess was drawn from what the small model says of all before it."""
        before = {request: list(request.ids) for request in self.driver.running}
        plan = self.driver.step()
        self.driver.runner.check()
        for request, guesses in plan.guesses.items():
            assert plan.drafts[request] == tuple(guess.token for guess in guesses)
            history = before[request]
            for guess in guesses:
                expected = distribution(small_logits(history)[:VOCAB_SIZE], request.params)
                np.testing.assert_array_equal(guess.drawn_from.ids, expected.ids)
                np.testing.assert_allclose(guess.drawn_from.shares, expected.shares)
                history = [*history, guess.token]
            self.num_guesses += len(guesses)

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.driver.num_requests:
            self.step()


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draft whatever it brings, another number of tokens each time."""
    lengths = itertools.cycle((3, 1, LONGEST, 2))
    monkeypatch.setattr(DraftPace, "length", lambda _: next(lengths))
    return iter(())


def test_its_cache_follows_the_conversations_whatever_was_accepted() -> None:
    num_guesses = 0
    for seed in range(6):
        rng, stage = random.Random(seed), Stage(max_running=2)
        prompts = [[rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(2, 30))] for _ in range(3)]
        for _ in range(8):
            params = SamplingParams(0.9, 0.95, 12, 0.0, 1.0, max_new_tokens=rng.randint(2, 60))
            request = stage.add([*rng.choice(prompts), rng.randrange(3, VOCAB_SIZE)], params)
            if rng.random() < 0.5:  # it goes on before another one comes, which may begin alike
                stage.run()
                prompts.append(list(request.ids[:60]))
        stage.run()
        num_guesses += stage.num_guesses
        assert stage.small.num_decoded > 0
    assert num_guesses > 500


def test_answers_are_as_likely_as_without_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers of three tokens, how likely they are, and how often they came."""
    params = SamplingParams(1.0, 1.0, 3, 0.0, 1.2, max_new_tokens=3)
    stage, prompt, came = Stage(), [5, 6, 7], Counter[tuple[int, ...]]()
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer: dict[tuple[int, ...], float] = {}
        for answer, chance in chances.items():
            if answer and answer[-1] == STOP_ID:
                longer[answer] = chance
                continue
            logits = history_logits([*prompt, *answer])
            for token in {*prompt, *answer} - {STOP_ID}:
                logits[token] *= 1 / 1.2 if logits[token] > 0 else 1.2
            found = distribution(logits, params)
            longer |= {(*answer, int(t)): chance * p for t, p in zip(found.ids, found.shares, strict=True)}
        chances = longer
    number = 1500
    monkeypatch.setattr(secrets, "randbits", random.Random(1).getrandbits)
    for index in range(number):
        request = make_request(index, prompt, params)
        request.speculation = Speculation()
        stage.driver.add(request)
        stage.driver.run_until_idle()
        came[tuple(request.ids[3:])] += 1
    assert came.keys() <= chances.keys()
    assert sum(len(plan.guesses) for plan in stage.driver.plans) > number / 2
    likely = {answer: chance for answer, chance in chances.items() if number * chance >= 5}
    rest = 1 - sum(likely.values())
    pairs = [(came[answer], number * chance) for answer, chance in likely.items()]
    pairs.append((number - sum(came[answer] for answer in likely), number * rest))
    distance = sum((seen - expected) ** 2 / expected for seen, expected in pairs if expected > 0.5)
    num_free = len(pairs) - 1
    assert distance < num_free + 4 * (2 * num_free) ** 0.5 + 4, (
        "of a chi-square distribution, one in thousands"
    )


def test_a_long_prompt_is_read_over_several_steps_and_only_while_that_may_pay() -> None:
    stage = Stage()
    request = stage.add([3 + i % 50 for i in range(150)])
    while request.is_prefilling:
        stage.step()
    for _ in range(6):
        stage.step()
    assert stage.small.chunks[:2] == [128, 24]
    assert stage.num_guesses > 0
    stage = Stage()
    stage.add([3 + i % 50 for i in range(150)], SamplingParams(0.9, max_new_tokens=6))
    stage.run()
    assert stage.small.chunks == []


def test_nothing_is_drafted_beside_others_nor_where_the_answer_must_be_reproducible() -> None:
    stage = Stage(max_running=2)
    for _ in range(2):
        stage.add([5, 6, 7, 8])
    for _ in range(8):
        stage.step()
        if len(stage.driver.running) < 2:
            break
        assert not stage.driver.plans[-1].guesses
    stage = Stage()
    stage.add([5, 6, 7, 8]).speculation = None
    stage.add([5, 6, 7, 8], replace(LONG, seed=4))
    stage.run()
    assert stage.small.chunks == []


def test_a_greedy_answer_is_the_same_with_drafts() -> None:
    params = replace(LONG, temperature=0.0, repetition_penalty=1.3)
    for seed in range(4):
        stage = Stage()
        request = stage.add([5, 6, 7, 8 + seed], params)
        stage.driver.run_until_idle()
        assert request.ids == run_alone([5, 6, 7, 8 + seed], params, MAX_TOKENS)
        assert sum(len(plan.guesses) for plan in stage.driver.plans) > 3


def test_a_cancelled_answer_leaves_its_cache_to_the_next_turn_unless_it_is_to_be_forgotten() -> None:
    for keep in (True, False):
        stage = Stage()
        request = stage.add(list(range(10, 30)))
        while stage.num_guesses < 4:
            stage.step()
        stage.driver.end(request, request.finish(FinishReason.CANCELLED), keep=keep)
        assert (stage.small.kv.ids != NEVER_WRITTEN).any() == keep
        stage.small.chunks.clear()
        follower = stage.add([*request.ids[:20], 9, 9, 9])
        stage.run()
        assert follower.num_new > 0
        assert stage.small.chunks[0] < 10 if keep else stage.small.chunks[0] >= 23


def test_what_is_forgotten_is_gone_from_its_cache_too() -> None:
    stage = Stage()
    stage.add(list(range(10, 30)))
    while stage.num_guesses < 4:
        stage.step()
    stage.driver.runner.forget()
    assert (stage.small.kv.ids == NEVER_WRITTEN).all()
    stage.run()  # what is still needed is computed anew, and guesses are right again
    stage.driver.runner.drop_unused()
    assert (stage.small.kv.ids == NEVER_WRITTEN).all()


def test_its_fault_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    request = stage.add([5, 6, 7, 8])
    while stage.num_guesses < 2:
        stage.step()
    stage.small.fault = RuntimeError("broken")
    num_chunks = len(stage.small.chunks)
    stage.run()
    assert stage.driver.finals[request.request_id].completion is not None
    assert len(stage.small.chunks) == num_chunks
    assert [record.message for record in caplog.records] == [
        "The draft model failed and is not used any more."
    ]
