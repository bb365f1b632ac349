"""Steps a scheduler and a runner over a fake model, without a thread."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from engine.cpu.runner import SlotRunner
from engine.runtime.model_folder import DiskRoom
from engine.runtime.request import Delta, Request
from engine.runtime.runner import Runner
from engine.runtime.scheduler import Scheduler, StepPlan
from tests.engine.fakes import HistoryModel

R = TypeVar("R", bound=Runner)


class RunnerDriver(Generic[R]):
    """Does what the worker does with requests, one step at a time."""

    def __init__(self, runner: R, max_running: int) -> None:
        self.runner = runner
        self.scheduler = Scheduler()
        self.scheduler.max_drafting = runner.max_drafting
        for num_rows in range(1, runner.max_drafting + 1):
            self.scheduler.timer.record(num_rows, 0.010)
        self._max_running = max_running
        self._waiting: deque[Request] = deque()
        self.finals: dict[int, Delta] = {}
        self.plans: list[StepPlan] = []

    @property
    def running(self) -> list[Request]:
        """Requests that have their place."""
        return self.scheduler.running

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._waiting) + len(self.running)

    def add(self, request: Request) -> None:
        """Let a request wait for room, as it would before it is submitted."""
        self._waiting.append(request)

    def step(self) -> StepPlan:
        """Place, plan, compute and sample once; chunks are sized for 160 tokens a second."""
        while self._waiting and len(self.running) < self._max_running:
            if not self.runner.place(self._waiting[0]):
                break
            self.scheduler.add(self._waiting.popleft())
        plan = self.runner.draft(self.scheduler.plan())
        self.plans.append(plan)
        if plan.is_empty:
            self.runner.use_idle_time()
            return plan
        result = self.runner.step(plan)
        self.scheduler.sizer.record(plan.num_prefill, plan.num_prefill / 160)
        for request, rows in result.rows:
            draft = plan.drafts.get(request, ())
            delta = request.accept(rows, draft, plan.guesses.get(request, ()))
            if draft and request.speculation is not None:
                num_accepted = len(request.ids) - request.num_computed - 1
                self.runner.confirm(request, num_accepted)
                request.speculation.record(len(draft), num_accepted, paid=num_accepted > 0)
            if delta.is_final:
                self._end(request, delta)
        for chunk in plan.prefill:
            if chunk.request.request_id not in self.finals:
                self.scheduler.prefilled(chunk.request)
        return plan

    def end(self, request: Request, delta: Delta, *, keep: bool = True) -> None:
        """End a request from outside, as a cancellation does."""
        self._end(request, delta, keep=keep)

    def run_until_idle(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            if not self.num_requests:
                return
            self.step()
        raise AssertionError("The requests do not end.")

    def _end(self, request: Request, delta: Delta, *, keep: bool = True) -> None:
        if request.request_id in self.finals:
            raise AssertionError(f"Request {request.request_id} ended twice.")
        self.finals[request.request_id] = delta
        self.runner.release(request, keep=keep)
        self.scheduler.remove(request)
        if request in self._waiting:
            self._waiting.remove(request)


class Driver(RunnerDriver[SlotRunner]):
    """The same over a `SlotRunner`."""

    def __init__(
        self,
        num_slots: int,
        max_kv_tokens: int,
        max_running: int,
        max_tokens: int = 256,
        *,
        min_exact_rows: int = 1,
        page_tokens: int = 1,
        kv_disk: DiskRoom | None = None,
    ) -> None:
        self.models: list[HistoryModel] = []
        self.max_kv_tokens = max_kv_tokens
        runner = SlotRunner(
            lambda: self._load(num_slots, max_tokens, page_tokens),
            num_slots,
            max_kv_tokens,
            min_exact_rows=min_exact_rows,
            kv_disk=kv_disk,
        )
        super().__init__(runner, max_running)

    @property
    def model(self) -> HistoryModel:
        return self.models[-1]

    def _load(self, num_slots: int, max_tokens: int, page_tokens: int) -> HistoryModel:
        self.models.append(HistoryModel(num_slots, max_tokens, page_tokens))
        return self.models[-1]
