"""An event loop whose time passes only when everybody waits for it: tests of waits take no time.

Work in other threads is waited for before time goes on, if `is_busy` knows of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer as soon as nothing else is left to do."""

    def __init__(self, is_busy: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._is_busy = is_busy
        self._now_s = 1000.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready and loop._scheduled and not self._is_busy():
            self._now_s = max(self._now_s, loop._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


def run(work: Coroutine[Any, Any, Result], is_busy: Callable[[], bool] = lambda: False) -> Result:
    """Run `work` in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(is_busy)) as runner:
        return runner.run(work)


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)
