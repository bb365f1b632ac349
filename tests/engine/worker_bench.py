"""A worker over a scripted runner, and the listener at its other end."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from engine.errors import EngineError
from engine.runtime.request import Delta, Request
from engine.runtime.scheduler import StepPlan
from engine.runtime.worker import Worker
from engine.types import Completion, SamplingParams
from tests.engine.fakes import VOCAB_SIZE, ScriptedRunner, make_request

TIMEOUT_S = 60.0
STEP_S = 0.0005
NAN, OUTSIDE = -1, VOCAB_SIZE
"""Scripted answers: unusable logits, and a token that the decoder's table lacks."""


class Listener:
    """The other end of `deliver`: keeps every delta and waits for endings."""

    def __init__(self, on_final: Callable[[], None] = lambda: None) -> None:
        self.deltas: dict[int, list[Delta]] = defaultdict(list)
        self.error: Exception | None = None
        self.num_deliveries = 0
        self._changed = threading.Condition()
        self._on_final = on_final

    def __call__(self, deltas: list[Delta]) -> None:
        if self.error is not None:
            raise self.error
        with self._changed:
            self.num_deliveries += 1
            for delta in deltas:
                self.deltas[delta.request_id].append(delta)
                if delta.is_final:
                    self._on_final()
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, TIMEOUT_S), "nothing came"

    def final(self, request: Request) -> Delta:
        """Wait for the ending of `request`; check that it is the only one and the last."""
        deltas = self.deltas[request.request_id]
        self.wait(lambda: bool(deltas) and deltas[-1].is_final)
        assert [delta.is_final for delta in deltas].count(True) == 1
        return deltas[-1]

    def completion(self, request: Request) -> Completion:
        """Wait for a good ending; what was streamed is the whole text."""
        completion = self.final(request).completion
        assert completion is not None
        assert "".join(delta.text for delta in self.deltas[request.request_id]) == completion.text
        return completion

    def error_of(self, request: Request) -> EngineError:
        error = self.final(request).error
        assert error is not None
        return error


class Bench:
    """A worker over a scripted runner whose steps can be held up and made to fail."""

    def __init__(self) -> None:
        self.listener = Listener()
        self._gate = threading.Condition()
        self._is_held = self._is_waiting = False
        self.plans: list[StepPlan] = []
        self.num_faults_due = 0
        self.answers: dict[int, list[int]] = {}
        self.runner = ScriptedRunner(self._answer, VOCAB_SIZE + 1, self._on_step)
        self.worker = Worker(lambda: self.runner, self.listener)
        self._ids = iter(range(1, 10_000))

    def start(self) -> None:
        started: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.worker.start(started.put)
        assert started.get(timeout=TIMEOUT_S) is None

    def submit(self, *answer: int, max_new_tokens: int = 32_768) -> Request:
        """Submit a request that is answered with these tokens, the last one for ever."""
        params = SamplingParams(temperature=0, repetition_penalty=1, max_new_tokens=max_new_tokens)
        request = make_request(next(self._ids), [5, 6, 7], params, max_tokens=100_000)
        self.answers[request.request_id] = list(answer)
        self.worker.submit(request)
        return request

    def hold(self) -> None:
        """Let the thread run into the next step and stay there."""
        with self._gate:
            self._is_held = True
            assert self._gate.wait_for(lambda: self._is_waiting, TIMEOUT_S)

    def let_go(self) -> None:
        """End a `hold`."""
        with self._gate:
            self._is_held = False
            self._gate.notify_all()

    def close(self) -> None:
        self.let_go()
        self.worker.close()
        self.worker.join()

    def _answer(self, request: Request) -> int:
        answer = self.answers[request.request_id]
        return answer.pop(0) if len(answer) > 1 else answer[0]

    def _on_step(self, plan: StepPlan) -> None:
        self.plans.append(plan)
        with self._gate:
            self._is_waiting = True
            self._gate.notify_all()
            assert self._gate.wait_for(lambda: not self._is_held, TIMEOUT_S)
            self._is_waiting = False
        time.sleep(STEP_S)
        if self.num_faults_due:
            self.num_faults_due -= 1
            raise RuntimeError("CUDA error 700")
