"""An event loop whose time passes only when everybody waits for it: tests of waits take no time.

Work in other threads is waited for before time goes on: an executor's, what is marked as `at_work`, and what
`is_busy` knows of.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

Result = TypeVar("Result")
Given = ParamSpec("Given")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer as soon as nothing else is left to do."""

    def __init__(self, is_busy: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._is_busy = is_busy
        self._now_s = 1000.0
        self.num_at_work = 0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        loop: Any = self
        while loop._scheduled and loop._scheduled[0].cancelled():  # as the loop itself does it, later
            loop._timer_cancelled_count -= 1
            heapq.heappop(loop._scheduled)._scheduled = False
        if not loop._ready and loop._scheduled and not self.num_at_work and not self._is_busy():
            self._now_s = max(self._now_s, loop._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]

    def run_in_executor(self, *given: Any) -> Any:  # type: ignore[override]
        """Let time wait for it as well."""
        work = super().run_in_executor(*given)
        self.num_at_work += 1
        work.add_done_callback(self._done)
        return work

    async def shutdown_default_executor(self, *given: Any) -> None:
        """Let time wait for its threads: Python 3.12 and later give them a bounded time to end."""
        self.num_at_work += 1
        await super().shutdown_default_executor(*given)

    def _done(self, _work: object) -> None:
        self.num_at_work -= 1


def at_work(call: Callable[Given, Awaitable[Result]]) -> Callable[Given, Coroutine[Any, Any, Result]]:
    """Return a function in which virtual time waits for what another thread does."""

    @functools.wraps(call)
    async def called(*given: Given.args, **named: Given.kwargs) -> Result:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            return await call(*given, **named)
        loop.num_at_work += 1
        try:
            return await call(*given, **named)
        finally:
            loop.num_at_work -= 1

    return called


def run(work: Coroutine[Any, Any, Result], is_busy: Callable[[], bool] = lambda: False) -> Result:
    """Run `work` in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(is_busy)) as runner:
        return runner.run(work)


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)
