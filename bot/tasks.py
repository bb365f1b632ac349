"""The one owner of background tasks: keeps each until it has ended, and logs every one that fails."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Tasks:
    """Background tasks of one owner. As an async context manager it closes at the end.

    They run in the context in which the owner was made, whoever has them started: what an answer's view does
    in the background is logged as that answer's, and what serves all of them as nobody's.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """Return how many have not ended."""
        return len(self._others(None))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self, work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
        """Begin `work`, which `name` says in the log should it fail."""
        task = asyncio.create_task(work, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all have ended, also those that begin meanwhile; return whether that came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while others := self._others(asyncio.current_task()):
                    await asyncio.wait(others)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Cancel what is left and wait for its end. Closing twice is fine, and so is closing from inside."""
        self.cancel()
        if others := self._others(asyncio.current_task()):
            await asyncio.wait(others)

    def cancel(self) -> None:
        """Cancel what is left."""
        for task in self._others(asyncio.current_task()):
            task.cancel()

    def _others(self, me: asyncio.Task[Any] | None) -> set[asyncio.Task[Any]]:
        return {task for task in self._tasks if task is not me and not task.done()}

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("Background work failed: %s", task.get_name(), exc_info=error)


class InOrder:
    """Lets what concerns the same thing happen one after the other, in the order in which it came."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, about: int) -> AsyncIterator[None]:
        """Wait for all that came before."""
        lock = self._locks.setdefault(about, asyncio.Lock())
        async with lock:
            yield


class Pause:
    """A wait that can be ended early, for all who are in it."""

    def __init__(self) -> None:
        self._sleeps: set[asyncio.Task[None]] = set()

    async def wait(self, longest_s: float) -> None:
        """Wait until somebody calls `end`."""
        sleep = asyncio.ensure_future(asyncio.sleep(longest_s))
        self._sleeps.add(sleep)
        try:
            await asyncio.wait({sleep})
        finally:
            self._sleeps.discard(sleep)
            sleep.cancel()

    def end(self) -> None:
        """Let everybody go on."""
        for sleep in self._sleeps:
            sleep.cancel()
