"""The engine's beginning, its faults and its end: nobody is left waiting and no thread is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from engine.engine import Engine, EngineOptions
from engine.errors import (
    EngineUnavailableError,
    GenerationFailedError,
    ModelFormatError,
    NoRoomError,
)
from engine.runtime.runner import Runner
from engine.types import (
    FinishReason,
    Generation,
    Health,
    Prompt,
)
from tests.engine.engine_stage import GREEDY, Stage, read, wait_until

PROMPT = Prompt((5, 6, 7))


async def test_a_fault_is_raised_to_whoever_reads_and_stays(stage: Stage) -> None:
    engine = await stage.open()
    stage.answers([*stage.encode("half"), -1])
    generation = engine.generate(PROMPT, GREEDY)
    pieces: list[str] = []

    async def read_on() -> None:
        async for piece in generation:
            pieces.append(piece)  # noqa: PERF401 - what came before the fault counts

    for _ in range(2):
        with pytest.raises(GenerationFailedError):
            await read_on()
    assert "".join(pieces) == "half"
    assert generation.completion is None
    stage.says("fine")
    assert (await read(engine.generate(PROMPT, GREEDY))).text == "fine"


async def test_an_unhealthy_engine_refuses_with_a_sentence(stage: Stage) -> None:
    engine = await stage.open()
    stage.runner.reload_error = MemoryError()
    stage.fault = RuntimeError("device lost")
    with pytest.raises(GenerationFailedError):
        await read(engine.generate(PROMPT, GREEDY))
    await wait_until(lambda: engine.health is Health.UNHEALTHY)
    with pytest.raises(EngineUnavailableError, match="unhealthy"):
        engine.generate(PROMPT, GREEDY)


async def test_what_begins_while_a_fault_is_mended_is_answered_after_that(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reload, may_reload = stage.runner.reload, threading.Event()

    def slow_reload() -> None:
        assert may_reload.wait(20)
        reload()
        stage.fault = None

    monkeypatch.setattr(stage.runner, "reload", slow_reload)
    engine = await stage.open()
    stage.fault = RuntimeError("device lost")
    with pytest.raises(GenerationFailedError):
        await read(engine.generate(PROMPT, GREEDY))
    assert engine.health is Health.RECOVERING
    stage.says("fine")
    meanwhile, stopped = engine.generate(PROMPT, GREEDY), engine.generate(PROMPT, GREEDY)
    stopped.cancel()
    may_reload.set()
    assert (await read(meanwhile)).text == "fine"
    assert (await read(stopped)).finish_reason is FinishReason.CANCELLED


async def test_two_engines_at_once_do_not_mix(stage: Stage, make_stage: Callable[[], Stage]) -> None:
    other = make_stage()
    one, two = await stage.open(), await other.open()
    stage.says("I am one")
    other.says("I am two")
    answers = await asyncio.gather(
        *(read(engine.generate(PROMPT, GREEDY)) for engine in (one, two) for _ in range(5))
    )
    assert [answer.text for answer in answers] == ["I am one"] * 5 + ["I am two"] * 5


async def test_a_model_that_cannot_be_loaded_raises_where_it_is_opened(stage: Stage) -> None:
    stage.load_error = MemoryError("no room")
    with pytest.raises(MemoryError, match="no room"):
        await stage.open()


async def test_a_folder_without_weights_is_refused(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError):
        await Engine.open(stage.make_folder(), EngineOptions())
    with pytest.raises(ModelFormatError):
        await Engine.open(tmp_path / "nowhere", EngineOptions())


async def test_before_the_start_and_after_the_close_it_is_unavailable(stage: Stage) -> None:
    engine = stage.make()
    with pytest.raises(EngineUnavailableError):
        engine.generate(PROMPT, GREEDY)
    healths = [engine.health]
    await engine.start()
    healths.append(engine.health)
    await engine.close()
    healths.append(engine.health)
    assert healths == [Health.RECOVERING, Health.READY, Health.CLOSED]
    with pytest.raises(EngineUnavailableError, match="closed"):
        engine.generate(PROMPT, GREEDY)


async def test_closing_ends_what_runs_and_closing_twice_is_fine(stage: Stage) -> None:
    engine = await stage.open(EngineOptions(max_concurrent=3))
    stage.says_for_ever("a", step_s=0.001)
    generations = [engine.generate(PROMPT, GREEDY) for _ in range(3)]
    await anext(generations[0])
    async with engine:
        pass
    await engine.close()
    for generation in generations:
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await read(generation)


async def test_an_engine_that_never_started_can_be_closed(stage: Stage) -> None:
    await stage.make().close()


async def test_requests_made_while_it_closes_end_too(stage: Stage) -> None:
    engine = await stage.open()
    stage.says_for_ever("a", step_s=0.02)
    first = engine.generate(PROMPT, GREEDY)
    await anext(first)
    closing = asyncio.create_task(engine.close())
    late: list[Generation] = []
    while not closing.done():
        try:
            late.append(engine.generate(PROMPT, GREEDY))
        except (EngineUnavailableError, NoRoomError):
            await asyncio.sleep(0.001)
    for generation in [first, *late]:
        with pytest.raises(EngineUnavailableError):
            await asyncio.wait_for(read(generation), 10)


async def test_giving_up_while_it_loads_leaves_no_thread_behind(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load(_engine: Engine) -> Runner:
        loading.set()
        assert go_on.wait(20)
        return stage.runner

    monkeypatch.setattr(Engine, "_load_runner", load)
    before = set(threading.enumerate())
    opening = asyncio.create_task(Engine.open(stage.make_folder(), EngineOptions()))
    await asyncio.to_thread(loading.wait, 20)
    threads = [thread for thread in threading.enumerate() if thread.name == "llamacord-engine"]
    threads = [thread for thread in threads if thread not in before]
    assert len(threads) == 1
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()
    await asyncio.to_thread(threads[0].join, 20)
    assert not threads[0].is_alive()


def in_a_loop_that_closes(work: Callable[[], Awaitable[object]]) -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(asyncio.ensure_future(work(), loop=loop))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


@pytest.mark.parametrize("moment", ["loading", "generating"])
def test_the_loop_may_be_closed_while_the_thread_works(make_stage: Callable[[], Stage], moment: str) -> None:
    stage = make_stage()
    go_on = threading.Event()

    async def work() -> None:
        if moment == "loading":
            stage.load_gate = go_on
            starting = asyncio.ensure_future(stage.make().start())
            await asyncio.sleep(0.05)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        engine = await stage.open()
        stage.says_for_ever("a", step_s=0.001)
        await anext(engine.generate(PROMPT, GREEDY))

    in_a_loop_that_closes(work)
    go_on.set()
    worker = stage.engines[-1]._worker
    if moment == "loading":
        worker.close()
    worker.join()
    assert worker.health is Health.CLOSED
