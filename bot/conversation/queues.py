"""The queues that answers stand in: one running answer a conversation, the others wait in order.

At most `max_running` answers are made at once, and the next one is chosen fairly. Owns the tasks that make
answers and the bounds of the queues. Knows nothing of how an answer is made.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bot.conversation.fairness import Claim, FairOrder
from bot.conversation.jobs import Job, StopReason
from bot.conversation.lane import Lane
from bot.errors import ConversationBusyError, ShuttingDownError, TooManyWaitingError
from bot.tasks import Tasks

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 20.0
"""Enough to mark all answers of a full conversation, since its messages may be edited only so often."""
NUM_TOLD = 3
"""How many of those who wait, here and for other conversations, are told their new place when it changes."""


class AnswerQueues:
    """Runs jobs, each conversation's in order. max_total: of jobs that wait, in all conversations."""

    def __init__(
        self,
        run: Callable[[Job], Awaitable[object]],
        *,
        max_waiting: int,
        max_running: int = 64,
        max_total: int = 10_000,
    ) -> None:
        self._run = run
        self._max_waiting = max_waiting
        self._max_running = max_running
        self._max_total = max_total
        self._lanes: dict[int, Lane] = {}
        self._order = FairOrder()
        self._arrivals = itertools.count(1)
        self._tasks = Tasks()
        self.is_closed = False
        self.is_paused = False

    @property
    def num_running(self) -> int:
        """Answers being made."""
        return sum(lane.running is not None for lane in self._lanes.values())

    @property
    def num_waiting(self) -> int:
        """Answers that wait for their turn."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @asynccontextmanager
    async def place(self, channel_id: int) -> AsyncIterator[None]:
        """Hold the conversation's entrance, first come first served, to store a question and `add` its job.

        Raises `ConversationBusyError`, `TooManyWaitingError` or `ShuttingDownError` at once.
        """
        if self.is_closed:
            raise ShuttingDownError
        lane = self._lanes.get(channel_id)
        if lane is not None and lane.num_taken > self._max_waiting:
            raise ConversationBusyError(self._max_waiting)
        if self.num_waiting >= self._max_total:
            raise TooManyWaitingError
        async with self.entrance(channel_id):
            yield

    @asynccontextmanager
    async def entrance(self, channel_id: int) -> AsyncIterator[None]:
        """Hold the conversation's entrance without asking for a place: nobody comes in meanwhile."""
        lane = self._lanes.setdefault(channel_id, Lane(channel_id))
        lane.num_visitors += 1
        try:
            async with lane.admission:
                yield
        finally:
            lane.num_visitors -= 1
            self._drop_if_idle(lane)

    def add(self, channel_id: int, job: Job) -> None:
        """Queue `job`. Call inside `place`."""
        lane = self._lanes[channel_id]
        if self.is_closed:
            job.stop(StopReason.SHUTDOWN)
        lane.append(job, _claim_of(channel_id, job, next(self._arrivals)))
        self._fill()
        if job in lane.waiting:
            if lane.running is not None:
                lane.running.view.followed()
            self._tell_place(lane, len(lane.waiting) - 1, job)

    def last(self, channel_id: int) -> Job | None:
        """Return the job that was queued last in a conversation, if it has not ended."""
        lane = self._lanes.get(channel_id)
        jobs = [] if lane is None else lane.jobs()
        return jobs[-1] if jobs else None

    def jobs(self, channel_id: int) -> list[Job]:
        """Return the running job of a conversation and those that wait, in order."""
        lane = self._lanes.get(channel_id)
        return [] if lane is None else lane.jobs()

    def find(self, answer_id: int) -> Job | None:
        """Return the running or waiting job of an answer."""
        jobs = (job for lane in self._lanes.values() for job in lane.jobs())
        return next((job for job in jobs if job.answer_id == answer_id), None)

    def stop(self, answer_id: int, reason: StopReason) -> bool:
        """End a running or waiting job; return whether there was one."""
        for lane in self._lanes.values():
            for job in lane.jobs():
                if job.answer_id == answer_id:
                    self._stop(lane, job, reason)
                    return True
        return False

    def stop_asker(self, asker_id: int, reason: StopReason, guild_id: int | None = None) -> list[Job]:
        """End all jobs for one person's questions, everywhere or on one server; return them."""
        stopped = [
            (lane, job)
            for lane in self._lanes.values()
            for job in lane.jobs()
            if job.asker_id == asker_id and (guild_id is None or _server_of(job) == guild_id)
        ]
        for lane, job in reversed(stopped):
            self._stop(lane, job, reason)
        return [job for _, job in stopped]

    def stop_conversation(self, channel_id: int, reason: StopReason) -> int:
        """End all jobs of a conversation; return how many there were."""
        lane = self._lanes.get(channel_id)
        if lane is None:
            return 0
        jobs = lane.jobs()
        for job in reversed(jobs):
            self._stop(lane, job, reason)
        return len(jobs)

    async def drain(self, timeout_s: float) -> bool:
        """Let nothing more begin and wait for what runs; return whether it ended in time."""
        self.is_paused = True
        return await self._tasks.wait(timeout_s)

    def resume(self) -> None:
        """Let answers begin again."""
        self.is_paused = False
        self._fill()

    async def close(self, *, grace_s: float = 0.0) -> None:
        """Refuse further questions, wait for the jobs for `grace_s`, then end those that are left.

        Waits for the endings within limits.
        """
        self.is_closed = True
        if grace_s and self._tasks:
            _log.info("Closing: answers in the making may take up to %.0f s", grace_s)
            await self._tasks.wait(grace_s)
        for channel_id in list(self._lanes):
            self.stop_conversation(channel_id, StopReason.SHUTDOWN)
        await self._tasks.wait(CLOSE_TIMEOUT_S)
        await self._tasks.close()

    def _stop(self, lane: Lane, job: Job, reason: StopReason) -> None:
        job.stop(reason)
        if job in lane.waiting:
            lane.remove(job)
            self._tasks.start(self._end(job), f"answer {job.answer_id}")
            self._tell_places(lane)

    def _fill(self) -> None:
        """Begin answers while there is room, whose turn it is first."""
        while not self.is_paused and self.num_running < self._max_running:
            ready = self._ready()
            if not ready:
                return
            lane = self._lanes[ready[0].channel_id]
            job, claim = lane.take_next()
            self._order.served(claim)
            self._tasks.start(self._serve(lane, job), f"answer {job.answer_id}")

    async def _serve(self, lane: Lane, job: Job) -> None:
        """Make one answer, then let the next one begin; not if we are cancelled, for then all ends."""
        await self._end(job)
        lane.running = None
        self._fill()
        self._tell_places(lane)
        for claim in self._ready()[:NUM_TOLD]:
            self._tell_places(self._lanes[claim.channel_id])
        self._drop_if_idle(lane)

    async def _end(self, job: Job) -> None:
        try:
            await self._run(job)
        except Exception:  # noqa: BLE001 - the edge of a task: the queue goes on
            _log.exception("Answer %d ended with a fault", job.answer_id)

    def _drop_if_idle(self, lane: Lane) -> None:
        if lane.num_taken == 0 and self._lanes.get(lane.channel_id) is lane:
            del self._lanes[lane.channel_id]

    def _ready(self) -> list[Claim]:
        """Return who could begin now, in fair order: the first of each conversation that nothing runs in."""
        return self._order.ordered(lane.claims[0] for lane in self._lanes.values() if lane.is_ready)

    def _tell_places(self, lane: Lane) -> None:
        for index, job in enumerate(itertools.islice(lane.waiting, NUM_TOLD)):
            self._tell_place(lane, index, job)

    def _tell_place(self, lane: Lane, index: int, job: Job) -> None:
        """Tell a job its place: the first one where nothing runs waits for other conversations."""
        if index == 0 and lane.running is None:
            job.view.waiting(self._ready().index(lane.claims[0]) + 1, for_others=True)
        else:
            job.view.waiting(index + 1, for_others=False)


def _claim_of(channel_id: int, job: Job, arrival: int) -> Claim:
    return Claim(channel_id, job.asker_id, _server_of(job), arrival)


def _server_of(job: Job) -> int | None:
    return None if job.origin is None else job.origin.guild_id
