"""Steps over a paged cache: each answer is what it is alone, whatever runs beside it and ahead of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.gpu.runner import PagedRunner
from engine.runtime.request import Request
from engine.runtime.scheduler import PrefillPace
from engine.runtime.speculation import Speculation
from engine.types import FinishReason, SamplingParams
from tests.engine.driver import RunnerDriver
from tests.engine.fakes import STOP_ID, VOCAB_SIZE, make_request, run_alone
from tests.engine.paged_fakes import HistoryBlocks

BLOCK_SIZE = 4
PACE = PrefillPace(largest=64, first_tokens_per_s=160.0)
GREEDY = SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=12)


class Oracle(Speculation):
    """Drafts what an answer will be: often right, sometimes wrong from some token on, or not at all."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._answer = run_alone(request.prompt.ids, request.params, 200)
        self._chooser = random.Random(request.request_id)

    @property
    def is_paused(self) -> bool:
        return self._chooser.random() < 0.3

    def draft(self, ids: Sequence[int], max_tokens: int, *, is_alone: bool = True) -> tuple[int, ...]:
        draft = self._answer[len(ids) :][: min(max_tokens, self._chooser.randrange(6))]
        if draft and self._chooser.random() < 0.4:
            draft[self._chooser.randrange(len(draft))] = 3
        return tuple(draft)


class Stage:
    """A driver over a paged runner, and the models that it loaded."""

    def __init__(self, num_blocks: int = 64, num_slots: int = 4) -> None:
        self.models: list[HistoryBlocks] = []

        def load() -> HistoryBlocks:
            self.models.append(HistoryBlocks(num_blocks, BLOCK_SIZE, num_slots, [STOP_ID]))
            return self.models[-1]

        self.runner = PagedRunner(load, "fake", PACE)
        self.driver = RunnerDriver(self.runner, num_slots)
        self.requests: list[Request] = []
        self.numbers = itertools.count()

    @property
    def model(self) -> HistoryBlocks:
        return self.models[-1]

    def add(self, ids: Sequence[int], params: SamplingParams, *, drafts: bool = False) -> Request:
        request = make_request(next(self.numbers), ids, params, max_tokens=200)
        if drafts:
            request.speculation = Oracle(request)
        self.requests.append(request)
        self.driver.add(request)
        return request

    def run(self) -> None:
        """Run to the end and check that every answer is what it is alone."""
        self.driver.run_until_idle()
        for request in self.requests:
            assert request.ids == run_alone(request.prompt.ids, request.params, 200), request.request_id
        self.runner.check()
        assert self.runner.num_kv_tokens <= self.runner.max_kv_tokens


def prompt(seed: int, length: int) -> tuple[int, ...]:
    chooser = random.Random(seed)
    return tuple(chooser.randrange(3, VOCAB_SIZE) for _ in range(length))


def long_answer(**params: float | int) -> SamplingParams:
    chosen: dict[str, float | int] = {"temperature": 0.9, "top_k": 6, "seed": 5, "max_new_tokens": 40}
    return SamplingParams(**{**chosen, **params})  # type: ignore[arg-type]


def test_an_answer_alone_is_a_step_ahead_of_the_host() -> None:
    stage = Stage()
    request = stage.add(prompt(2, 21), long_answer(max_new_tokens=30))
    stage.run()
    assert request.num_new > 10
    num_steps = request.num_new - 1
    assert stage.model.num_followed >= num_steps - 2, "all but the first step were started ahead"
    assert stage.model.num_started == 2, "the prompt, and the first step"


def test_answers_that_end_at_different_times_do_not_disturb_each_other() -> None:
    stage = Stage()
    for seed in range(4):
        stage.add(prompt(seed, 5 + 7 * seed), long_answer(seed=seed, max_new_tokens=3 + 9 * seed))
    stage.run()
    assert stage.model.num_followed > 10


def test_an_answer_that_joins_does_not_disturb_what_runs_ahead() -> None:
    stage = Stage()
    stage.add(prompt(1, 9), long_answer(seed=1))
    for _ in range(8):
        stage.driver.step()
    stage.add(prompt(2, 40), long_answer(seed=2))
    for _ in range(3):
        stage.driver.step()
    stage.add(prompt(3, 6), long_answer(seed=3, max_new_tokens=2))
    stage.run()


@pytest.mark.parametrize("penalty", [0.8, 1.0, 1.3])
def test_the_repetition_penalty_holds_for_prompt_and_answer(penalty: float) -> None:
    stage = Stage()
    first = prompt(4, 30)
    stage.add(first, long_answer(repetition_penalty=penalty, seed=11))
    stage.add(prompt(5, 11), long_answer(repetition_penalty=penalty, seed=12, top_k=3))
    stage.run()
    # The beginning of the next turn's prompt is in the cache, and still counts as had.
    stage.add((*first, *prompt(6, 7)), long_answer(repetition_penalty=penalty, seed=13))
    stage.run()
    assert stage.requests[-1].num_cached == 28


@pytest.mark.parametrize("guesses", [False, True])
def test_where_words_are_counted_the_host_chooses_and_others_stay_as_they_are(guesses: bool) -> None:
    stage = Stage()
    if guesses:
        stage.add(prompt(4, 30), long_answer(frequency_penalty=0.8, repetition_penalty=1.1), drafts=True)
    for seed in range(3):
        stage.add(prompt(seed, 30), long_answer(frequency_penalty=0.4 * seed, seed=seed))
    stage.add(prompt(5, 11), long_answer(temperature=0.0, presence_penalty=-0.9))
    stage.run()


def test_what_the_candidates_cannot_tell_the_host_chooses() -> None:
    stage = Stage()
    stage.add(prompt(7, 10), long_answer(top_k=0, top_p=1.0, seed=3))
    stage.add(prompt(8, 10), long_answer(top_k=0, top_p=0.9, seed=4, repetition_penalty=1.2))
    stage.add(prompt(9, 10), long_answer(top_k=40, temperature=2.0, seed=5, repetition_penalty=1.2))
    stage.run()


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_right_drafts_are_taken_and_wrong_ones_change_nothing(penalty: float) -> None:
    num_steps = num_tokens = 0
    for seed in range(6):
        stage = Stage()
        stage.add(prompt(seed, 10), long_answer(seed=seed, repetition_penalty=penalty), drafts=True)
        stage.run()
        num_steps += len(stage.driver.plans)
        num_tokens += stage.requests[0].num_new
    assert num_steps < 0.8 * num_tokens


def test_a_cancelled_answer_leaves_its_place_and_its_kv() -> None:
    stage = Stage(num_blocks=20)
    request = stage.add(prompt(1, 30), long_answer())
    other = stage.add(prompt(2, 10), long_answer(max_new_tokens=20))
    for _ in range(12):
        stage.driver.step()
    kept = list(request.ids[:-1])
    stage.driver.end(request, request.finish(FinishReason.CANCELLED))
    stage.requests.remove(request)
    follower = stage.add((*kept, 5, 6, 7), GREEDY)
    stage.run()
    assert follower.num_cached == len(kept) // BLOCK_SIZE * BLOCK_SIZE > 0
    assert other.num_new == 20 or other.ids[-1] == STOP_ID


def test_who_finds_no_room_waits_and_is_answered() -> None:
    stage = Stage(num_blocks=14, num_slots=4)
    for seed in range(6):
        stage.add(prompt(seed, 20), long_answer(seed=seed, max_new_tokens=20))
    stage.driver.step()
    assert len(stage.driver.running) == 1
    stage.run()


def test_forgotten_kv_is_not_used_again() -> None:
    stage = Stage()
    stage.add(prompt(1, 30), GREEDY)
    stage.run()
    stage.runner.forget()
    again = stage.add(prompt(1, 30), GREEDY)
    stage.run()
    assert (again.num_cached, stage.runner.num_kv_tokens > 0) == (0, True)


def test_a_fault_in_a_step_that_was_started_ahead_is_a_fault_of_the_next_step() -> None:
    stage = Stage()
    stage.add(prompt(1, 9), long_answer())
    for _ in range(5):
        stage.driver.step()
    stage.model.fault = RuntimeError("the device is gone")
    stage.driver.step()  # this one was computed before
    with pytest.raises(RuntimeError, match="the device is gone"):
        stage.driver.step()
    stage.requests.clear()
    for request in stage.driver.running:
        stage.driver.scheduler.remove(request)
    stage.runner.reload()
    assert stage.models[0].is_closed
    assert len(stage.models) == 2
    assert stage.runner.num_kv_tokens == 0
    stage.add(prompt(1, 9), GREEDY)
    stage.run()


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 100]),
    min_p=st.sampled_from([0.0, 0.2]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.0, 1.4]),
    max_new_tokens=st.integers(1, 30),
    seed=st.integers(0, 9),
)


@settings(max_examples=80, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(1, 50), PARAMS, st.booleans()),
        min_size=1,
        max_size=12,
    ),
    num_blocks=st.integers(25, 70),
    num_slots=st.integers(1, 6),
)
def test_whatever_runs_together_each_answer_is_what_it_is_alone(
    arrivals: list[tuple[int, int, int, SamplingParams, bool]], num_blocks: int, num_slots: int
) -> None:
    stage = Stage(num_blocks, num_slots)
    for wait, seed, length, params, drafts in arrivals:
        stage.add(prompt(seed, length), params, drafts=drafts)
        for _ in range(wait):
            stage.driver.step()
    stage.run()


def test_ten_thousand_steps_of_joining_leaving_cancelling_and_forgetting_leak_nothing() -> None:
    stage, chooser = Stage(num_blocks=60, num_slots=6), random.Random(0)
    done = 0
    while len(stage.driver.plans) < 10_000:
        if stage.driver.num_requests < 9 and chooser.random() < 0.3:
            params = long_answer(
                seed=chooser.randrange(100),
                max_new_tokens=chooser.randrange(1, 60),
                top_k=chooser.choice([0, 3, 30, 200]),
                repetition_penalty=chooser.choice([1.0, 1.1]),
            )
            ids = prompt(chooser.randrange(6), chooser.randrange(1, 90))
            stage.add(ids, params, drafts=chooser.random() < 0.3)
        stage.driver.step()
        if stage.driver.running and chooser.random() < 0.02:
            request = chooser.choice(stage.driver.running)
            stage.driver.end(request, request.finish(FinishReason.CANCELLED), keep=chooser.random() < 0.7)
            stage.requests.remove(request)
        if chooser.random() < 0.005:
            stage.runner.forget()
        if len(stage.driver.plans) % 100 == 0:
            stage.runner.check()
            ended = [request for request in stage.requests if request.request_id in stage.driver.finals]
            for request in ended:
                assert request.ids == run_alone(request.prompt.ids, request.params, 200)
                stage.requests.remove(request)
            done += len(ended)
    stage.run()
    assert done > 300
    assert stage.model.num_followed > 1000
    stage.runner.forget()
    stage.runner.check()
    assert stage.runner.num_kv_tokens == 0
    assert len(stage.models) == 1
