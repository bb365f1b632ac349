"""The clock of limits: seconds of the event loop, which never run backwards."""

from __future__ import annotations

import asyncio


def loop_seconds() -> float:
    """Return the running event loop's time."""
    return asyncio.get_running_loop().time()
