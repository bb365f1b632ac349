"""The queue of one conversation: what runs in it, what waits, and who stands in its entrance.

Knows nothing of other conversations and of how an answer is made.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from bot.conversation.fairness import Claim
from bot.conversation.jobs import Job


@dataclass(slots=True, eq=False)
class Lane:
    """One conversation's jobs. `admission` makes the order of arrival the order in storage."""

    channel_id: int
    admission: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_visitors: int = 0
    running: Job | None = None
    waiting: deque[Job] = field(default_factory=deque)
    claims: deque[Claim] = field(default_factory=deque)
    """One for each job that waits."""

    def jobs(self) -> list[Job]:
        """Return the running job and those that wait, in order."""
        return ([] if self.running is None else [self.running]) + list(self.waiting)

    @property
    def num_taken(self) -> int:
        """Jobs, and visitors who may bring one."""
        return self.num_visitors + len(self.jobs())

    @property
    def is_ready(self) -> bool:
        """Whether the first one that waits could run."""
        return self.running is None and bool(self.waiting)

    def append(self, job: Job, claim: Claim) -> None:
        """Let a job wait as the last one."""
        self.waiting.append(job)
        self.claims.append(claim)

    def take_next(self) -> tuple[Job, Claim]:
        """Let the first one that waits run."""
        self.running = self.waiting.popleft()
        return self.running, self.claims.popleft()

    def remove(self, job: Job) -> None:
        """Let a job wait no longer."""
        index = self.waiting.index(job)
        del self.waiting[index]
        del self.claims[index]
