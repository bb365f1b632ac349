"""Faults of the model, of one request and of the engine itself: what they end, and what goes on."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

from engine.errors import EngineUnavailableError, GenerationFailedError
from engine.runtime import worker as worker_module
from engine.runtime.runner import Runner
from engine.runtime.worker import Worker
from engine.types import FinishReason, Health, SamplingParams
from tests.engine.fakes import STOP_ID, make_request
from tests.engine.worker_bench import NAN, OUTSIDE, TIMEOUT_S, Bench, Listener


@pytest.mark.parametrize("bad", [NAN, OUTSIDE])
def test_a_fault_in_one_request_ends_only_that_one(
    started: Bench, bad: int, caplog: pytest.LogCaptureFixture
) -> None:
    good = started.submit(40)
    faulty = started.submit(41, 42, bad)
    assert isinstance(started.listener.error_of(faulty), GenerationFailedError)
    started.worker.cancel(good.request_id)
    assert started.listener.completion(good).finish_reason is FinishReason.CANCELLED
    assert started.worker.health is Health.READY
    assert started.runner.num_reloads == 0
    assert started.runner.placed == set()


def test_a_fault_of_the_model_ends_what_ran_and_the_next_ones_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.start()
    running = [bench.submit(40), bench.submit(41)]
    bench.listener.wait(lambda: all(bench.listener.deltas[request.request_id] for request in running))
    bench.hold()
    bench.num_faults_due = 1
    arrived = bench.submit(42, STOP_ID)
    bench.let_go()
    for request in running:
        assert "Try again" in str(bench.listener.error_of(request))
    assert bench.listener.completion(arrived).finish_reason is FinishReason.STOP
    later = bench.submit(43, STOP_ID)
    assert bench.listener.completion(later).finish_reason is FinishReason.STOP
    assert bench.runner.num_reloads == 1
    assert bench.worker.health is Health.READY
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    bench.close()


def test_three_faults_in_a_row_make_it_unhealthy(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.start()
    bench.num_faults_due = 2
    for _ in range(2):
        assert isinstance(bench.listener.error_of(bench.submit(40)), GenerationFailedError)
    running = bench.submit(40)
    bench.hold()
    bench.num_faults_due = 100
    arrived = [bench.submit(41) for _ in range(4)]
    bench.let_go()
    assert isinstance(bench.listener.error_of(running), GenerationFailedError)
    for request in arrived:
        error = bench.listener.error_of(request)
        assert isinstance(error, EngineUnavailableError)
        assert "operator" in str(error)
    assert bench.worker.health is Health.UNHEALTHY
    later = bench.submit(42)
    assert isinstance(bench.listener.error_of(later), EngineUnavailableError)
    assert len(bench.plans) == 3
    bench.close()


def test_faults_with_good_steps_between_do_not_add_up(
    started: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(6):
        started.num_faults_due = 1
        assert isinstance(started.listener.error_of(started.submit(40)), GenerationFailedError)
        assert started.listener.completion(started.submit(40, STOP_ID))
    assert started.worker.health is Health.READY


def test_a_failed_reload_makes_it_unhealthy_at_once(started: Bench, caplog: pytest.LogCaptureFixture) -> None:
    started.runner.reload_error = MemoryError()
    started.num_faults_due = 1
    assert isinstance(started.listener.error_of(started.submit(40)), GenerationFailedError)
    later = started.submit(41)
    assert isinstance(started.listener.error_of(later), EngineUnavailableError)
    assert started.worker.health is Health.UNHEALTHY


def test_the_exception_of_a_fault_is_let_go_before_the_reload(
    started: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Its traceback would keep the old model in memory while the new one is loaded."""
    handled: list[BaseException | None] = []
    reload = started.runner.reload

    def watched_reload() -> None:
        handled.append(sys.exception())
        reload()

    started.runner.reload = watched_reload  # type: ignore[method-assign]
    started.num_faults_due = 1
    started.listener.error_of(started.submit(40))
    started.listener.completion(started.submit(40, STOP_ID))
    assert handled == [None]


def test_the_books_are_checked_when_idle_and_wrong_ones_are_a_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "_CHECK_INTERVAL_S", 0.0)
    reloaded = threading.Event()

    def reload() -> None:
        bench.runner.check_error = None
        reloaded.set()

    monkeypatch.setattr(bench.runner, "reload", reload)
    bench.start()
    running = bench.submit(40)
    bench.hold()
    num_checks = bench.runner.num_checks
    bench.runner.check_error = RuntimeError("The books of block 3 are wrong: users.")
    bench.let_go()
    bench.listener.wait(lambda: len(bench.listener.deltas[running.request_id]) > 3)
    assert bench.runner.num_checks == num_checks, "nobody waits for it"
    bench.worker.cancel(running.request_id)
    bench.listener.completion(running)
    assert reloaded.wait(TIMEOUT_S)
    assert bench.listener.completion(bench.submit(41, STOP_ID))
    assert "block 3" in caplog.text
    assert bench.worker.health is Health.READY


@pytest.mark.parametrize("broken", ["place", "release"])
def test_a_fault_in_the_bookkeeping_ends_each_request_once_too(
    started: Bench, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    method = getattr(started.runner, broken)
    num_due = 1

    def fail_once(*args: object, **kwargs: object) -> object:
        nonlocal num_due
        num_due -= 1
        if num_due == 0:
            raise KeyError("a bug")
        return method(*args, **kwargs)

    setattr(started.runner, broken, fail_once)
    requests = [started.submit(40, STOP_ID) for _ in range(3)]
    for request in requests:
        started.listener.final(request)
    assert started.listener.completion(started.submit(40, STOP_ID)).finish_reason is FinishReason.STOP


def test_a_model_that_cannot_be_loaded_is_reported_to_whoever_started_it() -> None:
    listener = Listener()

    def load() -> Runner:
        raise MemoryError("no room")

    worker = Worker(load, listener)
    early = make_request(1, [5], SamplingParams())
    worker.submit(early)
    errors: list[Exception | None] = []
    worker.start(errors.append)
    worker.join()
    assert [str(error) for error in errors] == ["no room"]
    assert worker.health is Health.CLOSED
    assert isinstance(listener.error_of(early), EngineUnavailableError)
    with pytest.raises(EngineUnavailableError):
        worker.submit(make_request(2, [5], SamplingParams()))
