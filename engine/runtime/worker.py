"""The engine's thread: takes requests, runs step after step, hands out what each step brought.

It alone touches the scheduler, the runner and the requests. Others speak to it through `submit`, `cancel`
and `close`; it answers through at most one call of `deliver` per step. Every request that was submitted gets
exactly one final delta.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from engine.errors import EngineError, EngineUnavailableError, GenerationFailedError, NoRoomError
from engine.runtime.request import Delta, Request, is_all_kept
from engine.runtime.runner import Runner, StepResult
from engine.runtime.scheduler import ChunkSizer, Scheduler, StepPlan
from engine.types import FinishReason, Health

logger = logging.getLogger(__name__)

Deliver = Callable[[list[Delta]], None]
Command = Callable[[], None]

_MAX_FAULTS_IN_A_ROW = 3
_DELIVERY_INTERVAL_S = 0.025
_CHECK_INTERVAL_S = 60.0
_UNUSED_S = 6 * 3600.0
"""After once to twice this time, the memory of KV that nobody used or expected is given back."""
_FAULT = "The model failed while it was answering. Try again."
_CLOSED = "The engine is shutting down. Try again later."
_NO_ROOM = "There is no room for another answer. Try again in a minute."
_UNHEALTHY = "The model keeps failing. The operator needs to look at the log."


class Worker:
    """Owns the thread.

    What has no underscore may be read from anywhere; `device` once the model is loaded.
    """

    def __init__(self, load_runner: Callable[[], Runner], deliver: Deliver) -> None:
        self._load_runner = load_runner
        self._deliver = deliver
        self._scheduler = Scheduler()
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._requests: dict[int, Request] = {}
        self._arrivals: deque[Request] = deque()
        self._deltas: list[Delta] = []
        self._delivered_at = self._checked_at = 0.0
        self._dropped_at = time.monotonic()
        self._num_faults = 0
        self._closing = False
        self._forgetting = False
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._main, name="llamacord-engine", daemon=True)
        self._started: Callable[[Exception | None], None] = lambda _: None
        self.health = Health.RECOVERING
        self.num_kv_tokens = self.max_kv_tokens = 0
        self.block_size = 1
        self.device = ""

    def start(self, on_started: Callable[[Exception | None], None]) -> None:
        """Start the thread; `on_started` is called from it once the model is loaded, or with why not."""
        self._started = on_started
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Begin a request with the next step. Any thread. Raises `EngineUnavailableError` when it has ended.

        There must be room for it: no request waits for another one. What is to be computed ahead ends as
        cancelled where there is none, and with the next request that is not.
        """
        with self._ending:
            if self.health is Health.CLOSED:
                raise EngineUnavailableError(_CLOSED)
            self._commands.put(lambda: self._add(request))

    def cancel(self, request_id: int) -> None:
        """End a request before the next step. Any thread; ids that are gone already are ignored."""
        self._commands.put(lambda: self._cancel(request_id))

    def forget(self) -> None:
        """Let go of the KV of all that was computed so far, before the next step. Any thread."""
        self._commands.put(self._begin_forgetting)

    def close(self) -> None:
        """End all requests and the thread, after the current step. Any thread; returns at once."""
        self._commands.put(self._begin_closing)

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._thread.ident is not None:
            self._thread.join()

    def _main(self) -> None:
        try:
            runner = self._load_runner()
        except Exception as error:  # noqa: BLE001 - the edge of the thread: reported to whoever started it
            self._end()
            self._started(error)
            return
        self._take_sizes(runner)
        self._scheduler.sizer = ChunkSizer(runner.pace)
        self._scheduler.max_drafting = runner.max_drafting
        self.health = Health.READY
        self._started(None)
        while not self._closing:
            try:
                self._turn(runner)
            except Exception:  # the edge of the thread: it must outlive its own bugs
                logger.exception("A step of the engine failed outside the model.")
                self._recover(runner)
            self.num_kv_tokens = runner.num_kv_tokens
            if self._is_delivery_due():
                self._flush()
        self._end()

    def _take_sizes(self, runner: Runner) -> None:
        self.device, self.block_size = runner.device, runner.block_size
        self._is_exact = runner.is_exact
        self.max_kv_tokens = runner.max_kv_tokens

    def _end(self) -> None:
        """Take no more requests and end those that were taken."""
        with self._ending:
            self.health = Health.CLOSED
        self._fail_all(EngineUnavailableError(_CLOSED))
        self._flush()

    def _turn(self, runner: Runner) -> None:
        """Take what was asked for, then run one step."""
        if not self._requests:
            self._check(runner)
        self._take_commands(wait=not (self._requests or self._uses_idle_time(runner)))
        self._drop_cancelled(runner)
        if self._forgetting:
            self._forgetting = False
            runner.forget()
        if self._closing:
            return
        self._place_arrivals(runner)
        plan = self._scheduler.plan()
        if plan.is_empty:
            return
        plan = runner.draft(plan)
        result = self._step(runner, plan)
        if result is None:
            self._recover(runner)
            return
        self._num_faults = 0
        self._commit(runner, plan, result)

    def _check(self, runner: Runner) -> None:
        """Look through the books now and then while nobody waits. Wrong ones are a fault like the model's."""
        now = time.monotonic()
        if self.health is Health.READY and now - self._checked_at >= _CHECK_INTERVAL_S:
            self._checked_at = now
            runner.check()
        if self.health is Health.READY and now - self._dropped_at >= _UNUSED_S:
            self._dropped_at = now
            runner.drop_unused()

    def _uses_idle_time(self, runner: Runner) -> bool:
        """Do a short piece of what may be done while nobody asks; return whether there may be more."""
        return self.health is Health.READY and runner.use_idle_time()

    def _place_arrivals(self, runner: Runner) -> None:
        """Give every request that came its place."""
        while self._arrivals:
            request = self._arrivals.popleft()
            if request.request_id not in self._requests:
                continue  # it was cancelled
            if request.is_ahead:
                self._place_ahead(runner, request)
            elif runner.place(request):
                self._scheduler.add(request)
            else:
                logger.error("There is no room for request %d: the accounts are wrong.", request.request_id)
                self._fail([request], NoRoomError(_NO_ROOM))

    def _place_ahead(self, runner: Runner, request: Request) -> None:
        if not runner.place_ahead(request):
            self._end_ahead(runner, request, FinishReason.CANCELLED)
        elif is_all_kept(request.num_computed, request.ids):
            self._end_ahead(runner, request, FinishReason.LENGTH)
        else:
            self._scheduler.add(request)

    def _end_ahead(self, runner: Runner, request: Request, reason: FinishReason) -> None:
        self._forget(runner, request, keep=True)
        self._deltas.append(request.finish(reason))

    def _step(self, runner: Runner, plan: StepPlan) -> StepResult | None:
        """Run the model; None after a fault, whose exception is let go: it may hold the model's memory."""
        try:
            return runner.step(plan)
        except Exception:  # whatever a native library raises
            logger.exception("The model failed in a step of %d rows.", len(plan.decode) + plan.num_prefill)
            return None

    def _commit(self, runner: Runner, plan: StepPlan, result: StepResult) -> None:
        """Take each request's next token and move every request on."""
        self._scheduler.sizer.record(plan.num_prefill, result.prefill_s)
        if not plan.prefill:
            self._scheduler.sizer.record_step(result.decode_s)
        num_rows = len(plan.decode)
        costs = self._scheduler.timer.costs(num_rows, result.decode_s, result.drafted_s)
        for request, rows in result.rows:
            if request.is_ahead:
                self._end_ahead(runner, request, FinishReason.LENGTH)
                continue
            try:
                delta = request.accept(rows, plan.drafts.get(request, ()), plan.guesses.get(request, ()))
                if request in plan.drafts and len(rows) > 1:
                    self._learn(runner, plan, request, costs.get(request, result.decode_s))
            except EngineError as error:
                delta = request.fail(error)
            except Exception:  # one request's fault ends that request
                logger.exception("Request %d failed.", request.request_id)
                delta = request.fail(GenerationFailedError(_FAULT))
            if delta.is_final:
                self._forget(runner, request, keep=delta.error is None)
            self._deltas.append(delta)
        if 0 < num_rows <= runner.max_drafting and not plan.drafts:
            self._scheduler.timer.record(num_rows, result.decode_s)
        for chunk in plan.prefill:
            if chunk.request.request_id in self._requests:
                self._scheduler.prefilled(chunk.request)

    def _learn(self, runner: Runner, plan: StepPlan, request: Request, seconds: float) -> None:
        """Keep what was accepted of a draft, and whether it was worth its time."""
        num_accepted = len(request.ids) - request.num_computed - 1
        runner.confirm(request, num_accepted)
        if request.speculation is not None and request not in plan.guesses:
            paid = self._scheduler.timer.pays(seconds, num_accepted + 1, len(plan.decode))
            request.speculation.record(len(plan.drafts[request]), num_accepted, paid=paid)

    def _take_commands(self, *, wait: bool) -> None:
        if wait:
            with contextlib.suppress(queue.Empty):
                self._commands.get(timeout=_UNUSED_S)()
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _add(self, request: Request) -> None:
        if self.health is Health.UNHEALTHY:
            self._deltas.append(request.fail(EngineUnavailableError(_UNHEALTHY)))
            return
        if not request.is_ahead:
            self._give_up_ahead()
        elif not all(other.is_ahead for other in self._requests.values()):
            request.cancelled = True
        if request.params.is_reproducible and not self._is_exact:
            # A run over several tokens rounds differently from single steps, so that a draft might show.
            request.speculation = None
        self._requests[request.request_id] = request
        self._arrivals.append(request)

    def _give_up_ahead(self) -> None:
        for request in self._requests.values():
            request.cancelled |= request.is_ahead

    def _cancel(self, request_id: int) -> None:
        if request_id in self._requests:
            self._requests[request_id].cancelled = True

    def _begin_forgetting(self) -> None:
        self._give_up_ahead()  # it might go on with what is to be forgotten
        self._forgetting = True

    def _begin_closing(self) -> None:
        self._closing = True

    def _drop_cancelled(self, runner: Runner) -> None:
        for request in [request for request in self._requests.values() if request.cancelled]:
            self._forget(runner, request, keep=True)
            self._deltas.append(request.finish(FinishReason.CANCELLED))

    def _forget(self, runner: Runner, request: Request, *, keep: bool) -> None:
        runner.release(request, keep=keep)
        self._scheduler.remove(request)
        del self._requests[request.request_id]

    def _recover(self, runner: Runner) -> None:
        """Fail what was running, then try to go on with a fresh model."""
        self._num_faults += 1
        self.health = Health.RECOVERING
        placed = [request for request in self._requests.values() if request not in self._arrivals]
        self._fail(placed, GenerationFailedError(_FAULT))
        self._flush()
        try:
            if self._num_faults >= _MAX_FAULTS_IN_A_ROW:
                raise EngineUnavailableError(_UNHEALTHY)
            runner.reload()
        except Exception:  # whatever a native library raises
            logger.critical("The model could not be brought back after a fault.", exc_info=True)
            self.health = Health.UNHEALTHY
            self._fail_all(EngineUnavailableError(_UNHEALTHY))
        else:
            self._take_sizes(runner)
            self.health = Health.READY

    def _fail_all(self, error: EngineError) -> None:
        self._take_commands(wait=False)
        self._arrivals.clear()
        self._fail(list(self._requests.values()), error)

    def _fail(self, requests: list[Request], error: EngineError) -> None:
        for request in requests:
            self._deltas.append(request.fail(error))
            self._scheduler.remove(request)
            del self._requests[request.request_id]

    def _is_delivery_due(self) -> bool:
        """Endings go out at once, mere text a few steps at a time: waking the loop costs the next step."""
        waited_s = time.monotonic() - self._delivered_at
        return waited_s >= _DELIVERY_INTERVAL_S or any(delta.is_final for delta in self._deltas)

    def _flush(self) -> None:
        self._delivered_at = time.monotonic()
        deltas, self._deltas = self._deltas, []
        if not deltas:
            return
        try:
            self._deliver(deltas)
        except RuntimeError:  # the event loop is closed: nobody listens any more
            self._closing = True
