"""Whatever else runs, is cached, copied or moved: each request's tokens are those of a run alone.

The fake model's logits come from the token ids that lie in its cache, all of them, so that a wrong slot, a
wrong length, a lost swap or an overwritten position gives other tokens.
"""

from __future__ import annotations

import random

import pytest

from engine.runtime.request import Request
from engine.types import FinishReason, SamplingParams
from tests.engine.driver import Driver
from tests.engine.fakes import NEVER_WRITTEN, STOP_ID, VOCAB_SIZE, make_request, run_alone

MAX_TOKENS = 160
SYSTEM_PROMPTS = ([5] * 12, list(range(10, 40)))
PARAMS = (
    SamplingParams(temperature=1.0, top_p=0.95, top_k=40, repetition_penalty=1.1),
    SamplingParams(temperature=1.5, top_p=1.0, top_k=0, repetition_penalty=1.0),
    SamplingParams(temperature=0.0, repetition_penalty=1.2),
)


class Traffic:
    """Random requests of random conversations: new ones, further turns, regenerated and shared beginnings."""

    def __init__(self, seed: int, driver: Driver) -> None:
        self.random = random.Random(seed)
        self.driver = driver
        self.requests: list[Request] = []
        self.running: list[Request] = []

    def submit(self) -> None:
        ids = self._prompt()
        room = MAX_TOKENS - len(ids)
        params = self.random.choice(PARAMS)
        num_new = self.random.choice((1, 3, 20, 60, 500))
        params = SamplingParams(
            params.temperature,
            params.top_p,
            params.top_k,
            params.min_p,
            params.repetition_penalty,
            max_new_tokens=num_new,
            seed=len(self.requests),
        )
        assert room > 0
        request = make_request(len(self.requests), ids, params, MAX_TOKENS)
        self.requests.append(request)
        self.running.append(request)
        self.driver.add(request)

    def cancel(self) -> None:
        request = self.random.choice(self.running)
        self.driver.end(request, request.finish(FinishReason.CANCELLED), keep=self.random.random() < 0.8)

    def forget_ended(self) -> list[Request]:
        ended = [request for request in self.running if request.request_id in self.driver.finals]
        self.running = [request for request in self.running if request not in ended]
        return ended

    def _prompt(self) -> list[int]:
        rng = self.random
        fresh = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.choice((1, 2, 3, 15, 16, 17, 40, 90)))]
        kind = rng.random()
        if kind < 0.5 and self.requests:
            last = rng.choice(self.requests[-12:])
            ids = last.ids if kind < 0.4 else list(last.prompt.ids)
            if kind > 0.45:
                return ids
            ids = [*ids, *fresh]
        else:
            ids = [*rng.choice(SYSTEM_PROMPTS), *fresh] if kind < 0.8 else fresh
        return ids if len(ids) < MAX_TOKENS else fresh


def check(request: Request, driver: Driver) -> None:
    """Compare an ended request with a run alone."""
    alone = run_alone(request.prompt.ids, request.params, request.max_tokens)
    completion = driver.finals[request.request_id].completion
    assert completion is not None
    if completion.finish_reason is FinishReason.CANCELLED:
        assert request.ids == alone[: len(request.ids)]
        return
    assert request.ids == alone
    stopped = alone[-1] == STOP_ID and len(alone) > request.num_prompt
    assert completion.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
    assert completion.usage.num_new_tokens == len(alone) - request.num_prompt
    assert completion.usage.num_cached_tokens == request.num_cached


def check_memory(driver: Driver) -> None:
    """No slot is leaked, and the bound holds for what is held and for what is touched."""
    slots, slot_of = driver.runner._slots, driver.runner._slot_of
    driver.runner.check()
    assert slot_of.keys() == set(driver.running)
    assert slots.num_tokens <= driver.max_kv_tokens
    for request in driver.running:
        assert slots[slot_of[request]].ids == request.ids[: request.num_computed]


def drive(seed: int, num_steps: int, driver: Driver, rate: float) -> Traffic:
    """Let random traffic through and check every request that ends."""
    traffic = Traffic(seed, driver)
    for _ in range(num_steps):
        if traffic.random.random() < rate and len(traffic.running) < 12:
            traffic.submit()
        if traffic.running and traffic.random.random() < 0.01:
            traffic.cancel()
        driver.step()
        check_memory(driver)
        for request in traffic.forget_ended():
            check(request, driver)
    driver.run_until_idle()
    for request in traffic.forget_ended():
        check(request, driver)
    assert len(driver.finals) == len(traffic.requests), "every request ends exactly once"
    assert driver.runner._slots.busy == []
    return traffic


def test_ten_thousand_steps_of_random_traffic() -> None:
    driver = Driver(num_slots=8, max_kv_tokens=700, max_running=4, max_tokens=MAX_TOKENS)
    traffic = drive(1, 10_000, driver, rate=0.15)
    kv = driver.model.kv
    assert len(traffic.requests) > 800
    assert min(kv.num_copies, kv.num_swaps, kv.num_given_back) > 20, "the hard cases were met"
    assert sum(request.num_cached for request in traffic.requests) > 10_000
    assert max(driver.model.windows) > 4, "fillers rode along"


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic_in_caches_of_all_sizes(seed: int) -> None:
    rng = random.Random(seed)
    max_running = rng.randint(1, 6)
    num_slots = max_running + rng.randint(0, 6)
    num_kv_tokens = rng.choice((160, 200, 400, 2000))
    driver = Driver(num_slots, num_kv_tokens, max_running, MAX_TOKENS, min_exact_rows=1 + seed % 2)
    drive(seed, 150, driver, rate=rng.choice((0.05, 0.3, 0.9)))


@pytest.mark.parametrize("page_tokens", [1, 16])
def test_touched_memory_stays_within_the_bound(page_tokens: int) -> None:
    """Each filler may touch one page behind what its slot holds, and nothing else is beyond the bound."""
    driver = Driver(6, 320, 3, MAX_TOKENS, min_exact_rows=2, page_tokens=page_tokens)
    traffic, most = Traffic(3, driver), 0
    for _ in range(3000):
        if traffic.random.random() < 0.2 and len(traffic.running) < 4:
            traffic.submit()
        driver.step()
        traffic.forget_ended()
        check_memory(driver)
        most = max(most, driver.model.kv.num_touched)
        assert most <= 320 + 6 * page_tokens
    assert most > 280, "and it is used"
    assert driver.model.kv.num_swaps > 3


def test_the_next_turn_computes_only_what_is_new() -> None:
    driver = Driver(4, 2000, 2, MAX_TOKENS)
    params = SamplingParams(temperature=1.0, max_new_tokens=5, seed=1)
    first = make_request(1, [5] * 50, params, MAX_TOKENS)
    driver.add(first)
    driver.run_until_idle()
    driver.model.chunks.clear()
    second = make_request(2, [*first.ids, 9, 9, 9], params, MAX_TOKENS)
    driver.add(second)
    driver.run_until_idle()
    assert second.num_cached == len(first.ids) - 1
    assert driver.model.chunks == [4]
    assert second.ids == run_alone(second.prompt.ids, params)


def test_of_a_stopped_prompt_only_what_was_computed_counts() -> None:
    driver = Driver(4, 2000, 2, MAX_TOKENS)
    params = SamplingParams(temperature=1.0, max_new_tokens=50, seed=1)
    driver.add(make_request(1, [5] * 20, params, MAX_TOKENS))
    driver.step()
    request = make_request(2, [*[5] * 20, *[9] * 120], params, MAX_TOKENS)
    driver.add(request)
    driver.step()
    completion = request.finish(FinishReason.CANCELLED).completion
    assert completion is not None
    assert completion.usage.num_prompt_tokens == 140
    assert completion.usage.num_cached_tokens == 20
    assert completion.usage.num_computed_tokens == driver.model.chunks[-1] < 100


@pytest.mark.parametrize("num_prompt", [1, 2, 15, 16, 17, 33, 64, 65, 159])
def test_prompts_of_all_lengths_in_chunks(num_prompt: int) -> None:
    driver = Driver(2, 400, 2, MAX_TOKENS)
    params = SamplingParams(temperature=1.0, max_new_tokens=40, seed=1)
    requests = [make_request(number, range(3, 3 + number), params, MAX_TOKENS) for number in (1, 2)]
    requests.append(make_request(0, [7] * num_prompt, params, MAX_TOKENS))
    for request in requests:
        driver.add(request)
    driver.run_until_idle()
    for request in requests:
        assert request.ids == run_alone(request.prompt.ids, params, MAX_TOKENS)
    lone = [chunk for chunk in driver.model.chunks if chunk == 1]
    assert len(lone) == 1 + (num_prompt == 1), "only prompts of one token are a chunk of one token"


@pytest.mark.parametrize(
    ("seed", "temperature", "fewest_rows"), [(1, 1.0, 2), (None, 0.0, 2), (None, 1.0, 1)]
)
def test_only_reproducible_answers_pay_for_rows_that_round_alike(
    seed: int | None, temperature: float, fewest_rows: int
) -> None:
    params = SamplingParams(temperature=temperature, max_new_tokens=20, seed=seed)
    for num_slots in (1, 2, 4):
        driver = Driver(num_slots, 400, 1, MAX_TOKENS, min_exact_rows=2)
        for request_id in range(num_slots):  # so that the last slot has its turn too
            driver.add(make_request(request_id, [5 + request_id] * 9, params, MAX_TOKENS))
        driver.run_until_idle()
        assert min(driver.model.windows[1:]) == min(fewest_rows, num_slots)


def test_requests_wait_while_the_running_ones_may_need_all_memory() -> None:
    driver = Driver(num_slots=4, max_kv_tokens=200, max_running=4, max_tokens=MAX_TOKENS)
    params = SamplingParams(temperature=1.5, max_new_tokens=60, seed=3)
    requests = [make_request(number, [9 + number] * 60, params, MAX_TOKENS) for number in range(3)]
    for request in requests:
        driver.add(request)
    driver.step()
    assert len(driver.running) == 1
    driver.run_until_idle()
    assert len(driver.finals) == 3


def test_a_request_larger_than_the_bound_still_runs_alone() -> None:
    driver = Driver(num_slots=4, max_kv_tokens=50, max_running=4, max_tokens=MAX_TOKENS)
    request = make_request(1, [9] * 60, SamplingParams(max_new_tokens=60, seed=3), MAX_TOKENS)
    driver.add(request)
    driver.run_until_idle()
    assert driver.finals[1].completion is not None


def test_reloading_starts_with_an_empty_cache_and_frees_the_old_model_first() -> None:
    driver = Driver(4, 2000, 2, MAX_TOKENS)
    params = SamplingParams(temperature=1.0, max_new_tokens=30, seed=1)
    first = make_request(1, [5] * 50, params, MAX_TOKENS)
    driver.add(first)
    driver.step()
    driver.scheduler.remove(first)
    driver.runner.reload()
    assert len(driver.models) == 2
    second = make_request(2, [5] * 50, params, MAX_TOKENS)
    driver.add(second)
    driver.run_until_idle()
    assert second.num_cached == 0
    assert second.ids == run_alone(second.prompt.ids, params, MAX_TOKENS)
    assert driver.runner._slots.busy == []


def test_a_failed_reload_leaves_no_model_behind() -> None:
    driver = Driver(4, 2000, 2, MAX_TOKENS)
    held: list[bool] = []

    def load() -> None:
        held.append(hasattr(driver.runner, "_model"))
        raise MemoryError

    driver.runner._load = load  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        driver.runner.reload()
    assert held == [False], "two models at once may not fit"


def test_release_is_idempotent_and_warm_up_leaves_no_trace() -> None:
    driver = Driver(4, 2000, 2, MAX_TOKENS)
    assert driver.runner._slots.num_tokens == 0
    request = make_request(1, [5] * 20, SamplingParams(), MAX_TOKENS)
    driver.runner.release(request, keep=True)
    assert driver.runner.place(request)
    driver.runner.release(request, keep=True)
    driver.runner.release(request, keep=True)
    assert driver.runner._slots.busy == []
    assert (driver.model.kv.ids[1:] == NEVER_WRITTEN).all()
