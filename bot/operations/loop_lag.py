"""How late the event loop is: what everybody waits for when something blocks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

INTERVAL_S = 0.5


async def measure_lag(report: Callable[[float], None]) -> None:
    """Sleep a known time again and again, and report how much longer it took."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        report(max(0.0, loop.time() - due_s))
