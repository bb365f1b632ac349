"""The lines that questions stand in: one answer at a time in a conversation, the others wait in order.

The first of each conversation goes to the engine's waiting room. An answer that is stored makes room for the
next one, and is shown in its own time. Owns the tasks of all that. Knows nothing of how an answer is made.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Protocol

from bot.conversation.jobs import Job, Lane, StopReason
from bot.conversation.views import Ending
from bot.errors import ConversationBusyError, ShuttingDownError, sentence_for
from bot.origin import Keys
from bot.tasks import Tasks
from engine.tracing import traced
from engine.waiting.room import Ticket, WaitingRoom
from storage.conversations import MessageState

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 20.0
"""Enough to mark all answers of a full conversation, since its messages may be edited only so often."""


class Maker(Protocol):
    """Makes answers."""

    async def make(self, job: Job, tell: Callable[[int], None]) -> Ending:
        """Make and store an answer. `tell` learns its place among those who wait, and 0 when it begins."""

    async def show(self, job: Job, ending: Ending) -> None:
        """Show how an answer ended."""


class AnswerQueues:
    """Runs jobs, each conversation's in order. max_waiting: of jobs that wait in one conversation."""

    def __init__(self, maker: Maker, room: WaitingRoom, *, max_waiting: int) -> None:
        self._maker = maker
        self._room = room
        self._max_waiting = max_waiting
        self._lanes: dict[int, Lane] = {}
        self._entering: set[Ticket] = set()
        self._tasks = Tasks()
        self.is_closed = False

    @property
    def num_running(self) -> int:
        """Answers being made."""
        return len(self._fronts()) - self._num_in_line

    @property
    def num_waiting(self) -> int:
        """Answers that wait for their turn."""
        return self._num_in_line + sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def num_unshown(self) -> int:
        """Answers that are made and still to be shown."""
        return sum(len(lane.unshown) for lane in self._lanes.values())

    @asynccontextmanager
    async def place(self, channel_id: int, keys: Keys) -> AsyncIterator[Ticket]:
        """Hold the conversation's entrance, first come first served, to store a question and `add` its job.

        keys: who asks, as `WaitingRoom.enter` wants it. Raises `ConversationBusyError`,
        `TooManyWaitingError` or `ShuttingDownError` at once.
        """
        if self.is_closed:
            raise ShuttingDownError
        lane = self._lanes.get(channel_id)
        if lane is not None and lane.num_taken > self._max_waiting:
            raise ConversationBusyError(self._max_waiting)
        ticket = self._room.enter(keys)
        self._entering.add(ticket)
        try:
            async with self.entrance(channel_id):
                yield ticket
        finally:
            if ticket in self._entering:
                self._entering.discard(ticket)
                self._room.leave(ticket)

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
        """Queue `job`, with the ticket of `place`. Call inside that."""
        lane = self._lanes[channel_id]
        self._entering.discard(job.ticket)
        if self.is_closed:
            job.stop(StopReason.SHUTDOWN)
        lane.append(job)
        self._advance(lane)
        if lane.waiting and lane.front is not None:
            lane.front.view.followed()
        lane.tell_places()

    def last(self, channel_id: int) -> Job | None:
        """Return the job that was queued last in a conversation, if it has not ended."""
        jobs = self.jobs(channel_id)
        return jobs[-1] if jobs else None

    def jobs(self, channel_id: int) -> list[Job]:
        """Return the jobs of a conversation that have not ended, in order."""
        lane = self._lanes.get(channel_id)
        return [] if lane is None else lane.jobs()

    def unended(self, channel_id: int) -> list[Job]:
        """Return the jobs of a conversation that are not yet shown to their end, in order."""
        return [job for lane, job in self._all() if lane.channel_id == channel_id]

    def find(self, answer_id: int) -> Job | None:
        """Return the job of an answer that is not yet shown to its end."""
        return next((job for _, job in self._all() if job.answer_id == answer_id), None)

    def stop(self, answer_id: int, reason: StopReason) -> bool:
        """End a job; return whether it had not ended.

        A person's stop counts only while there is something to stop: else the answer ends as it is.
        """
        found = [(lane, job) for lane, job in self._all() if job.answer_id == answer_id]
        return any(self._stop(lane, job, reason) for lane, job in found)

    def stop_asker(self, asker_id: int, reason: StopReason, guild_id: int | None = None) -> list[Job]:
        """End all jobs for one person's questions, everywhere or on one server; return them."""
        theirs = [
            (lane, job)
            for lane, job in self._all()
            if job.asker_id == asker_id and (guild_id is None or _server_of(job) == guild_id)
        ]
        return [job for lane, job in reversed(theirs) if self._stop(lane, job, reason)]

    def stop_conversation(self, channel_id: int, reason: StopReason) -> None:
        """End all jobs of a conversation."""
        for lane, job in reversed(list(self._all())):
            if lane.channel_id == channel_id:
                self._stop(lane, job, reason)

    def stop_server(self, guild_id: int, reason: StopReason) -> None:
        """End all jobs of a server."""
        for lane, job in reversed(list(self._all())):
            if _server_of(job) == guild_id:
                self._stop(lane, job, reason)

    def reread(self, channel_id: int | None = None) -> None:
        """Have the history read again for answers of which nothing is there, since it changed.

        In this conversation for all of them; in others for those that the model has not begun.
        """
        for lane, job in self._all():
            if not job.has_begun and (job.generation is None or lane.channel_id == channel_id):
                job.begin_anew()

    def unsay(self, discord_id: int) -> None:
        """Have answers of which nothing is there made without what a Discord message said until now."""
        for _, job in self._all():
            if discord_id in job.heard_ids and not job.has_begun:
                job.begin_anew()

    async def drain(self, timeout_s: float) -> bool:
        """Let nothing more begin and wait for what is being made; return whether it ended in time."""
        return await self._room.drain(timeout_s)

    def resume(self) -> None:
        """Let answers begin again, for which the prompt is made anew: the model may be another one."""
        self.reread()
        self._room.resume()

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

    @property
    def _num_in_line(self) -> int:
        return sum(job.ticket.is_in_line for job in self._fronts())

    def _fronts(self) -> list[Job]:
        return [lane.front for lane in self._lanes.values() if lane.front is not None]

    def _all(self) -> Iterator[tuple[Lane, Job]]:
        """Give all jobs, also those that have ended and are still to be shown."""
        for lane in list(self._lanes.values()):
            yield from ((lane, job) for job in (*lane.unshown, *lane.jobs()))

    def _stop(self, lane: Lane, job: Job, reason: StopReason) -> bool:
        if reason is StopReason.USER and job.is_whole:
            return False
        job.stop(reason)
        if job in lane.waiting:
            lane.waiting.remove(job)
            self._tasks.start(self._end_waiting(lane, job), f"ending {job.answer_id}")
            lane.tell_places()
        return job not in lane.unshown

    def _advance(self, lane: Lane) -> None:
        """Let the first one that waits be answered, unless somebody is."""
        if lane.front is None and lane.waiting:
            lane.front = job = lane.waiting.popleft()
            self._tasks.start(self._serve(lane, job), f"answer {job.answer_id}")

    async def _serve(self, lane: Lane, job: Job) -> None:
        """Make one answer, then let the next one begin; not if we are cancelled, for then all ends."""
        ending = await self._make(lane, job)
        lane.front = None
        self._advance(lane)
        self._let_show(lane, job, ending)
        lane.tell_places()

    async def _end_waiting(self, lane: Lane, job: Job) -> None:
        """End a job that had no turn and is in nobody's way: the answers before it need not have ended."""
        ending = await self._make(lane, job)
        with traced(job.trace):
            await self._maker.show(job, ending)

    def _let_show(self, lane: Lane, job: Job, ending: Ending) -> None:
        """Have an answer shown after those before it; what comes after it is held meanwhile."""
        is_first = not lane.unshown
        lane.unshown[job] = ending
        lane.hold()
        if is_first:
            self._tasks.start(self._show(lane), f"showing {lane.channel_id}")

    async def _show(self, lane: Lane) -> None:
        """Show how answers ended, each below the end of the one before it."""
        while lane.unshown:
            job, ending = next(iter(lane.unshown.items()))
            with traced(job.trace):
                await self._maker.show(job, ending)
            lane.shown(job)
        self._drop_if_idle(lane)

    async def _make(self, lane: Lane, job: Job) -> Ending:
        try:
            with traced(job.trace):
                return await self._maker.make(job, functools.partial(self._tell, lane, job))
        except Exception as error:  # noqa: BLE001 - the edge of a task: the queue goes on
            _log.exception("Answer %d ended with a fault", job.answer_id)
            note = sentence_for(error)
            return Ending(job.answer_id, MessageState.FAILED, "", note, can_regenerate=False)
        finally:
            self._room.leave(job.ticket)

    def _tell(self, lane: Lane, job: Job, place: int) -> None:
        if place:
            job.view.waiting(place, for_others=True)
        else:
            job.view.working()
        lane.tell_places()

    def _drop_if_idle(self, lane: Lane) -> None:
        if lane.num_taken == 0 and self._lanes.get(lane.channel_id) is lane:
            del self._lanes[lane.channel_id]


def _server_of(job: Job) -> int | None:
    return None if job.origin is None else job.origin.guild_id
