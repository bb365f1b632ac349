"""Background tasks are kept, logged when they fail, and ended with their owner."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from bot.tasks import Tasks


async def test_every_failure_is_logged_with_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    tasks = Tasks()
    tasks.start(fail(), "counting sheep")
    assert await tasks.wait()
    await asyncio.sleep(0)
    assert "counting sheep" in caplog.text
    assert "ValueError: broken" in caplog.text
    assert len(tasks) == 0


async def test_a_task_that_nobody_else_holds_is_not_collected() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go_on.wait()

    tasks = Tasks()
    held = weakref.ref(tasks.start(work(), "work"))
    await begun.wait()
    gc.collect()
    assert held() is not None
    go_on.set()
    assert await tasks.wait()


async def test_closing_cancels_and_waits_also_from_inside_and_twice(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    async def sleep() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("sleep")

    async def close() -> None:
        await tasks.close()
        ended.append("close")

    tasks = Tasks()
    tasks.start(sleep(), "sleep")
    await asyncio.sleep(0)
    await tasks.start(close(), "close")
    await tasks.close()
    assert ended == ["sleep", "close"]
    assert not caplog.text


async def test_waiting_has_a_bound_and_includes_what_begins_meanwhile() -> None:
    async def first() -> None:
        await asyncio.sleep(0)
        tasks.start(asyncio.sleep(0), "second")

    tasks = Tasks()
    tasks.start(first(), "first")
    assert await tasks.wait(10)
    assert len(tasks) == 0
    async with Tasks() as others:
        others.start(asyncio.sleep(60), "long")
        assert not await others.wait(0.01)
