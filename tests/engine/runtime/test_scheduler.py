"""Nobody waits long: neither a stream for a prompt, nor a short prompt for a long one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime.request import Request
from engine.runtime.scheduler import ChunkSizer, PrefillPace, Scheduler, StepPlan
from engine.types import SamplingParams
from tests.engine.fakes import make_request

ENDLESS = SamplingParams(max_new_tokens=1000)


def new_request(request_id: int, num_prompt: int) -> Request:
    return make_request(request_id, [5] * num_prompt, ENDLESS, max_tokens=100_000)


def compute(scheduler: Scheduler, tokens_per_s: float = 160.0) -> StepPlan:
    """Plan a step and carry it out as far as the scheduler can see."""
    plan = scheduler.plan()
    for request in plan.decode:
        request.num_computed += 1
        request.ids.append(5)
    scheduler.sizer.record(plan.num_prefill, plan.num_prefill / tokens_per_s)
    for request, num_tokens in ((chunk.request, chunk.num_tokens) for chunk in plan.prefill):
        request.num_computed += num_tokens
        if request.num_computed == request.num_prompt:
            request.ids.append(5)
        scheduler.prefilled(request)
    return plan


def start(scheduler: Scheduler, *requests: Request) -> None:
    for request in requests:
        scheduler.add(request)


def test_a_long_prompt_never_keeps_streams_waiting_for_more_than_one_chunk() -> None:
    scheduler = Scheduler()
    streams = [new_request(number, 2) for number in range(3)]
    start(scheduler, *streams)
    while len(scheduler.plan().decode) < 3:
        compute(scheduler)
    start(scheduler, new_request(10, 3000))
    while scheduler.plan().prefill:
        before = [len(request.ids) for request in streams]
        plan = compute(scheduler)
        assert plan.num_prefill <= 64, "more than a stream should wait for at this speed"
        assert [len(request.ids) for request in streams] == [length + 1 for length in before]


def test_short_prompts_overtake_a_long_one_and_it_still_gets_its_turns() -> None:
    scheduler = Scheduler()
    long = new_request(0, 2000)
    start(scheduler, long)
    compute(scheduler)
    short = [new_request(number, 10) for number in range(1, 11)]
    start(scheduler, *short)
    compute(scheduler)
    assert long.num_computed > 64, "its turn"
    for _ in range(10):
        compute(scheduler)
    assert not any(request.is_prefilling for request in short)
    assert long.is_prefilling
    while long.is_prefilling:
        assert compute(scheduler).prefill[0].request is long


def test_half_of_the_budget_is_for_the_prompt_whose_turn_it_is() -> None:
    scheduler = Scheduler()
    prompts = [new_request(number, 2000) for number in range(3)]
    start(scheduler, *prompts, *(new_request(number, 10_000) for number in range(3, 6)))
    for turn in range(12):
        plan = scheduler.plan()
        whose = plan.prefill[-1]
        assert whose.request.request_id == turn % 6, "long prompts that others overtake keep their turns"
        assert whose.num_tokens >= plan.num_prefill // 2
        for chunk in plan.prefill:
            scheduler.prefilled(chunk.request)


def test_short_prompts_share_a_step() -> None:
    scheduler = Scheduler()
    start(scheduler, *(new_request(number, 20) for number in range(6)))
    plan = scheduler.plan()
    assert sorted(chunk.request.request_id for chunk in plan.prefill) == list(range(6))
    assert {chunk.num_tokens for chunk in plan.prefill} == {20}


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=20), st.floats(1.0, 1e5))
def test_a_step_keeps_to_its_budget(lengths: list[int], tokens_per_s: float) -> None:
    scheduler = Scheduler()
    start(scheduler, *(new_request(number, length) for number, length in enumerate(lengths)))
    scheduler.sizer.record(100, 100 / tokens_per_s)
    plan = scheduler.plan()
    chunks = {chunk.request: chunk.num_tokens for chunk in plan.prefill}
    assert len(chunks) == len(plan.prefill), "one chunk a prompt"
    budget = scheduler.sizer.size(is_beside=False)
    assert 0 < plan.num_prefill <= budget
    if plan.num_prefill < budget - 16:
        assert all(chunks.get(request, 0) == request.num_prompt for request in scheduler.running)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=12), st.floats(1.0, 1e5))
def test_every_prompt_is_computed_once_in_order_and_never_one_token_alone(
    lengths: list[int], tokens_per_s: float
) -> None:
    scheduler = Scheduler()
    requests = [new_request(number, length) for number, length in enumerate(lengths)]
    waiting = list(requests)
    chunks: dict[Request, list[int]] = {request: [] for request in requests}
    for _ in range(10_000):
        while waiting and len(scheduler.running) < 4:
            start(scheduler, waiting.pop(0))
        if not scheduler.running:
            break
        plan = compute(scheduler, tokens_per_s)
        for chunk in plan.prefill:
            chunks[chunk.request].append(chunk.num_tokens)
        for request in plan.decode:
            scheduler.remove(request)
    for request, length in zip(requests, lengths, strict=True):
        assert sum(chunks[request]) == length
        assert max(chunks[request]) <= 512
        assert min(chunks[request]) >= min(2, length)


@pytest.mark.parametrize("stage", ["prefilling", "decoding"])
def test_a_request_is_forgotten_wherever_it_is(stage: str) -> None:
    scheduler = Scheduler()
    request = new_request(1, 40)
    start(scheduler, request)
    while stage == "decoding" and not scheduler.plan().decode:
        compute(scheduler)
    assert scheduler.running == [request]
    scheduler.remove(request)
    assert not scheduler.running
    assert scheduler.plan().is_empty
    scheduler.remove(request)


@pytest.mark.parametrize(("tokens_per_s", "expected"), [(10, 16), (500, 48), (1010, 96), (1e6, 512)])
def test_chunks_come_to_take_the_time_they_should(tokens_per_s: float, expected: int) -> None:
    sizer = ChunkSizer()
    for _ in range(60):
        sizer.record(100, 100 / tokens_per_s)
    assert sizer.size(is_beside=True) == expected


def test_beside_answers_a_chunk_may_be_bound_to_the_time_of_their_steps() -> None:
    sizer = ChunkSizer(PrefillPace(largest=2048, beside_steps=1.0))
    for _ in range(60):
        sizer.record(1000, 1000 / 32_000)
        sizer.record_step(0.0101)
    assert sizer.size(is_beside=True) == 320, "as many as 32,000 a second are in 10 ms"
    assert sizer.size(is_beside=False) == 2048
    for _ in range(60):
        sizer.record_step(1.0)
    assert sizer.size(is_beside=True) == 2048, "a slow step does not allow more than beside_s"


def test_tiny_chunks_teach_nothing() -> None:
    sizer = ChunkSizer()
    before = sizer.size(is_beside=False)
    for _ in range(20):
        sizer.record(1, 5.0)
        sizer.record(0, 0.0)
        sizer.record(500, 0.0)
    assert sizer.size(is_beside=False) == before


def test_a_prompt_alone_gets_larger_chunks_than_beside_streams() -> None:
    alone, beside = Scheduler(), Scheduler()
    start(beside, new_request(1, 2))
    compute(beside)
    for scheduler in (alone, beside):
        start(scheduler, new_request(2, 2000))
    assert alone.plan().num_prefill > 2 * beside.plan().num_prefill
