"""The line of one conversation: who is answered in it, who waits behind, and what is still to be shown.

Knows nothing of other conversations and of how an answer is made.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from bot.conversation.jobs import Job
from bot.conversation.views import Ending

NUM_TOLD = 3
"""How many of those who wait are told their new place when it changes."""


@dataclass(slots=True, eq=False)
class Lane:
    """One conversation's jobs. `admission` makes the order of arrival the order in storage."""

    channel_id: int
    admission: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_visitors: int = 0
    front: Job | None = None
    """The one that is answered, from its preparation until its answer is stored."""
    waiting: deque[Job] = field(default_factory=deque)
    unshown: dict[Job, Ending] = field(default_factory=dict)
    """Answers that are stored and not yet shown, in order, and how they ended."""

    def jobs(self) -> list[Job]:
        """Return those that have not ended, in order."""
        return ([] if self.front is None else [self.front]) + list(self.waiting)

    @property
    def num_taken(self) -> int:
        """Jobs, answers still to be shown, and visitors who may bring a job."""
        return self.num_visitors + len(self.jobs()) + len(self.unshown)

    def append(self, job: Job) -> None:
        """Let a job wait as the last one."""
        self.waiting.append(job)
        self.hold()

    def hold(self) -> None:
        """Show nothing of what comes after answers that are still to be shown: it would stand above them."""
        for job in self.jobs() if self.unshown else ():
            job.view.hold()

    def shown(self, job: Job) -> None:
        """Note that an answer is shown; after the last one it is the others' turn to be shown."""
        del self.unshown[job]
        for other in () if self.unshown else self.jobs():
            other.view.release()

    def tell_places(self) -> None:
        """Tell those behind the front their places, the next one to be answered has place 1."""
        is_front_waiting = self.front is not None and self.front.ticket.is_in_line
        for place, job in enumerate(self.waiting, start=2 if is_front_waiting else 1):
            if place <= NUM_TOLD or not job.view.is_told:
                job.view.waiting(place, for_others=False)
