"""The engine thread: every request that was submitted gets exactly one ending, however it ends."""

from __future__ import annotations

import contextlib
import random
import threading
import time

import pytest

from engine.cpu.runner import SlotRunner
from engine.errors import EngineUnavailableError, NoRoomError
from engine.runtime import worker
from engine.runtime.request import Request
from engine.runtime.runner import Runner
from engine.runtime.worker import Worker
from engine.types import FinishReason, Health, SamplingParams
from tests.engine.fakes import STOP_ID, TOKEN_BYTES, VOCAB_SIZE, HistoryModel, make_request, run_alone
from tests.engine.worker_bench import TIMEOUT_S, Bench, Listener


def test_text_streams_in_order_and_ends_with_the_reason(started: Bench) -> None:
    stopped = started.submit(40, 41, 42, STOP_ID)
    limited = started.submit(50, max_new_tokens=3)
    completion = started.listener.completion(stopped)
    assert completion.text == b"".join(TOKEN_BYTES[token] for token in (40, 41, 42)).decode()
    assert completion.finish_reason is FinishReason.STOP
    usage = completion.usage
    assert (usage.num_prompt_tokens, usage.num_computed_tokens, usage.num_new_tokens) == (3, 3, 4)
    completion = started.listener.completion(limited)
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.usage.num_new_tokens == 3
    assert 0 <= completion.usage.time_to_first_token_s <= completion.usage.duration_s < TIMEOUT_S


def test_submitted_before_the_start_is_answered_after_it(bench: Bench) -> None:
    request = bench.submit(40, STOP_ID)
    bench.start()
    assert bench.listener.completion(request).finish_reason is FinishReason.STOP


def test_cancelled_before_the_start_costs_no_step(bench: Bench) -> None:
    request = bench.submit(40)
    bench.worker.cancel(request.request_id)
    bench.start()
    completion = bench.listener.completion(request)
    assert (completion.finish_reason, completion.text) == (FinishReason.CANCELLED, "")
    assert bench.plans == []


def test_cancelled_before_its_first_step_it_never_gets_a_place(started: Bench) -> None:
    running = started.submit(40)
    started.hold()
    early = started.submit(41)
    started.worker.cancel(early.request_id)
    started.let_go()
    completion = started.listener.completion(early)
    assert completion.finish_reason is FinishReason.CANCELLED
    assert (completion.usage.num_prompt_tokens, completion.usage.num_computed_tokens) == (3, 0)
    assert early.request_id not in started.runner.ever_placed
    started.worker.cancel(running.request_id)
    assert started.listener.completion(running).finish_reason is FinishReason.CANCELLED


def test_nothing_waits_in_the_engine_whatever_is_submitted_is_in_the_next_step(started: Bench) -> None:
    first = started.submit(40)
    started.hold()
    others = [started.submit(41) for _ in range(8)]
    num_plans = len(started.plans)
    started.let_go()
    started.listener.wait(lambda: len(started.plans) > num_plans)
    plan = started.plans[num_plans]
    assert started.runner.placed >= {request.request_id for request in others}
    assert {chunk.request for chunk in plan.prefill} == set(others)
    assert first in plan.decode


def test_a_request_without_room_fails_alone_and_says_so(
    started: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    running = started.submit(40)
    started.hold()
    started.runner.num_refusals_due = 1
    refused, placed = started.submit(41), started.submit(42, STOP_ID)
    started.let_go()
    assert isinstance(started.listener.error_of(refused), NoRoomError)
    assert started.listener.completion(placed).finish_reason is FinishReason.STOP
    started.worker.cancel(running.request_id)
    assert started.listener.completion(running).finish_reason is FinishReason.CANCELLED
    assert f"no room for request {refused.request_id}" in caplog.text
    assert started.runner.num_reloads == 0


def test_cancelled_while_running_ends_within_the_step_and_frees_its_place(started: Bench) -> None:
    request, other = started.submit(40), started.submit(41)
    started.listener.wait(lambda: bool(started.listener.deltas[other.request_id]))
    started.hold()
    num_steps, num_new = len(started.plans), request.num_new
    started.worker.cancel(request.request_id)
    started.worker.cancel(request.request_id)
    started.let_go()
    completion = started.listener.completion(request)
    assert completion.finish_reason is FinishReason.CANCELLED
    assert completion.usage.num_new_tokens <= num_new + 1, "the step under way and no other"
    assert not any(request in plan.decode for plan in started.plans[num_steps:])
    started.worker.cancel(other.request_id)
    started.listener.completion(other)
    assert started.runner.placed == set()


def test_cancelling_what_is_gone_or_never_was_does_nothing(started: Bench) -> None:
    request = started.submit(40, STOP_ID)
    started.listener.completion(request)
    started.worker.cancel(request.request_id)
    started.worker.cancel(12345)
    again = started.submit(41, STOP_ID)
    assert started.listener.completion(again).finish_reason is FinishReason.STOP
    assert started.listener.completion(request).finish_reason is FinishReason.STOP
    assert started.runner.num_reloads == 0


def test_closing_ends_what_runs_and_what_just_came_and_may_be_repeated() -> None:
    bench = Bench()
    bench.start()
    requests = [bench.submit(40)]
    bench.hold()
    requests += [bench.submit(40) for _ in range(2)]
    bench.worker.close()
    bench.worker.close()
    bench.let_go()
    bench.worker.join()
    bench.close()
    for request in requests:
        assert "shutting down" in str(bench.listener.error_of(request))
    assert bench.worker.health is Health.CLOSED
    with pytest.raises(EngineUnavailableError):
        bench.submit(40)


def test_what_nobody_used_for_long_is_given_back_while_nobody_asks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_UNUSED_S", 0.01)
    bench.start()
    bench.listener.completion(bench.submit(40, STOP_ID))
    ends_at = time.monotonic() + TIMEOUT_S
    while bench.runner.num_drops < 3:
        assert time.monotonic() < ends_at
        time.sleep(0.005)
    assert bench.listener.completion(bench.submit(40, STOP_ID)).finish_reason is FinishReason.STOP


def test_what_is_done_while_nobody_asks_ends_by_itself_and_comes_after_questions(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_pieces: list[int] = []
    use = bench.runner.use_idle_time

    def watched() -> bool:
        at_pieces.append(len(bench.runner.placed))
        return use()

    monkeypatch.setattr(bench.runner, "use_idle_time", watched)
    bench.runner.num_idle_pieces = 10**9
    bench.start()
    first = bench.submit(40, STOP_ID)
    bench.listener.completion(first)
    bench.listener.completion(bench.submit(40, STOP_ID))
    assert set(at_pieces) == {0}, "never beside a question"
    bench.runner.num_idle_pieces = 3
    ends_at = time.monotonic() + TIMEOUT_S
    while bench.runner.num_idle_pieces:
        assert time.monotonic() < ends_at
        time.sleep(0.005)
    time.sleep(0.05)
    num_pieces = len(at_pieces)
    time.sleep(0.05)
    assert len(at_pieces) <= num_pieces + 1, "then it waits"


def test_a_worker_that_never_started_can_be_closed() -> None:
    bench = Bench()
    bench.close()


def test_submitting_while_it_closes_is_refused_or_answered_and_never_lost() -> None:
    for _ in range(30):
        bench = Bench()
        bench.start()
        accepted: list[Request] = []
        closing = threading.Thread(target=bench.worker.close)
        closing.start()
        with contextlib.suppress(EngineUnavailableError):
            accepted.extend(bench.submit(40, STOP_ID) for _ in range(300))
        closing.join()
        bench.worker.join()
        for request in accepted:
            assert bench.listener.deltas[request.request_id][-1].is_final


def test_when_nobody_listens_any_more_the_thread_ends(started: Bench) -> None:
    started.submit(40)
    started.listener.error = RuntimeError("Event loop is closed")
    started.worker.join()
    assert started.worker.health is Health.CLOSED


def test_text_is_delivered_a_few_steps_at_a_time(started: Bench) -> None:
    beginning = time.monotonic()
    started.listener.completion(started.submit(40, max_new_tokens=400))
    took_s = time.monotonic() - beginning
    assert started.listener.num_deliveries <= 3 + took_s / 0.025


@pytest.mark.parametrize("seed", range(3))
def test_random_traffic_from_several_threads_is_answered_as_alone(seed: int) -> None:
    models, room = list[HistoryModel](), threading.Semaphore(4)
    listener = Listener(on_final=room.release)

    def load() -> Runner:
        models.append(HistoryModel(8, 256))
        runners.append(SlotRunner(lambda: models[0], 8, 900))
        return runners[0]

    runners: list[SlotRunner] = []
    worker = Worker(load, listener)
    worker.start(lambda _error: None)
    requests: list[Request] = []
    cancelled: set[int] = set()

    def talk(user: int) -> None:
        rng = random.Random(seed * 10 + user)
        ids: list[int] = [5] * 10
        for turn in range(25):
            ids = [*ids, *(rng.randrange(3, VOCAB_SIZE) for _ in range(rng.choice((1, 2, 20, 50))))][-150:]
            params = SamplingParams(temperature=1.0, max_new_tokens=rng.choice((1, 10, 60)), seed=turn)
            request = make_request(user * 100 + turn, ids, params)
            requests.append(request)
            room.acquire()
            worker.submit(request)
            if rng.random() < 0.2:
                cancelled.add(request.request_id)
                worker.cancel(request.request_id)
            elif rng.random() < 0.7:
                listener.final(request)
                ids = list(request.ids)

    users = [threading.Thread(target=talk, args=(user,)) for user in range(1, 5)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert len(requests) == 100
    for request in requests:
        completion = listener.completion(request)
        alone = run_alone(request.prompt.ids, request.params)
        assert request.ids == alone[: len(request.ids)]
        assert request.ids == alone or request.request_id in cancelled
        new = request.ids[request.num_prompt :]
        assert completion.text == b"".join(TOKEN_BYTES[token] for token in new).decode()
    worker.close()
    worker.join()
    assert runners[0]._slots.busy == []
