"""The engine as the bot sees it: streams, endings and refusals, over a scripted model."""

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
    NoChatFormatError,
    PromptTooLongError,
    QueueFullError,
)
from engine.runner import Runner
from engine.types import (
    ChatMessage,
    FinishReason,
    Generation,
    Health,
    Prompt,
    SamplingParams,
    TextEngine,
)
from tests.engine.engine_stage import END, GREEDY, Stage, read, wait_until

PROMPT = Prompt((5, 6, 7))


async def test_text_streams_in_pieces_and_ends_with_a_completion(stage: Stage) -> None:
    engine = await stage.open()
    stage.says("Grüße aus 你好 🙂👩‍👧!")
    generation = engine.generate(PROMPT, GREEDY)
    before = generation.completion
    pieces = [piece async for piece in generation]
    assert all(pieces), "no piece is empty"
    assert not any("\ufffd" in piece for piece in pieces), "no character comes in part"
    completion = generation.completion
    assert before is None
    assert completion is not None
    assert completion.text == "".join(pieces) == "Grüße aus 你好 🙂👩‍👧!"
    assert completion.finish_reason is FinishReason.STOP
    assert completion.usage.num_prompt_tokens == 3
    assert completion.usage.num_new_tokens == len(stage.encode("Grüße aus 你好 🙂👩‍👧!")) + 1
    assert [piece async for piece in generation] == [], "the end stays the end"


async def test_an_answer_is_streamed_while_it_is_made(stage: Stage) -> None:
    engine = await stage.open()
    stage.says("a" * 4000, step_s=0.001)
    generation = engine.generate(PROMPT, GREEDY)
    assert (await anext(generation)).startswith("a")
    assert stage.num_steps < 1000
    generation.cancel()


async def test_an_answer_that_nobody_reads_goes_on_and_can_be_read_later(stage: Stage) -> None:
    engine = await stage.open()
    stage.says("one two three")
    generation = engine.generate(PROMPT, GREEDY)
    first = await anext(generation)
    await wait_until(lambda: not stage.runner.placed)
    assert first + "".join([piece async for piece in generation]) == "one two three"
    assert generation.completion is not None


async def test_stop_strings_end_the_answer_and_are_not_shown(stage: Stage) -> None:
    engine = await stage.open()
    stage.says("one\nUser: two")
    completion = await read(engine.generate(PROMPT, SamplingParams(0, stop=("\nUser:", "three"))))
    assert (completion.text, completion.finish_reason) == ("one", FinishReason.STOP)


@pytest.mark.parametrize(
    ("max_new_tokens", "context_tokens", "num_prompt", "num_new"),
    [(1, 0, 3, 1), (7, 0, 3, 7), (100, 40, 10, 30), (30, 40, 10, 30), (500, 40, 39, 1)],
)
async def test_both_limits_end_the_answer_with_the_reason(
    stage: Stage, max_new_tokens: int, context_tokens: int, num_prompt: int, num_new: int
) -> None:
    engine = await stage.open(EngineOptions(context_tokens=context_tokens))
    stage.says_for_ever("a")
    params = SamplingParams(0, repetition_penalty=1, max_new_tokens=max_new_tokens)
    completion = await read(engine.generate(Prompt((5,) * num_prompt), params))
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.text == "a" * num_new
    assert completion.usage.num_new_tokens == num_new


async def test_the_context_is_the_smaller_of_model_and_options(stage: Stage) -> None:
    assert (await stage.open(EngineOptions(context_tokens=100))).info.context_length == 100
    assert (await stage.open(EngineOptions(context_tokens=4000))).info.context_length == 512
    assert (await stage.open(EngineOptions())).info.context_length == 512


@pytest.mark.parametrize("moment", ["at once", "while waiting", "while running", "after the end"])
async def test_cancelling_at_any_time(stage: Stage, moment: str) -> None:
    engine = await stage.open(EngineOptions(max_concurrent=1))
    stage.says_for_ever("a", step_s=0.001)
    first = engine.generate(PROMPT, GREEDY) if moment == "while waiting" else None
    if first is not None:
        await anext(first)
    if moment == "after the end":
        stage.says("done")
    generation = engine.generate(PROMPT, GREEDY)
    if moment == "while running":
        await anext(generation)
    if moment == "after the end":
        await read(generation)
    generation.cancel()
    generation.cancel()
    completion = await read(generation)
    expected = FinishReason.STOP if moment == "after the end" else FinishReason.CANCELLED
    assert completion.finish_reason is expected
    if moment in ("at once", "while waiting"):
        assert completion.text == ""
    if first is not None:
        first.cancel()
        assert (await read(first)).finish_reason is FinishReason.CANCELLED
    stage.says("fine")
    assert (await read(engine.generate(PROMPT, GREEDY))).text == "fine"


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


async def test_a_full_queue_refuses_and_has_room_again_later(stage: Stage) -> None:
    engine = await stage.open(EngineOptions(max_concurrent=1, max_queue=2))
    stage.says_for_ever("a", step_s=0.001)
    generations = [engine.generate(PROMPT, GREEDY) for _ in range(3)]
    with pytest.raises(QueueFullError, match="Try again"):
        engine.generate(PROMPT, GREEDY)
    for generation in generations:
        generation.cancel()
        await read(generation)
    stage.says("fine")
    assert (await read(engine.generate(PROMPT, GREEDY))).text == "fine"


@pytest.mark.parametrize("num_tokens", [0, 40, 41])
async def test_a_prompt_that_leaves_no_room_is_refused(stage: Stage, num_tokens: int) -> None:
    engine = await stage.open(EngineOptions(context_tokens=40))
    with pytest.raises(PromptTooLongError):
        engine.generate(Prompt((5,) * num_tokens), GREEDY)


async def test_dialogs_become_prompts_and_answers(stage: Stage) -> None:
    engine: TextEngine = await stage.open()
    dialog = [ChatMessage("user", "old"), ChatMessage("assistant", "older"), ChatMessage("user", "Hello?")]
    whole = engine.fit_prompt(dialog, 500)
    prompt = engine.fit_prompt(dialog, len(whole.ids) - 1)
    assert (whole.num_dropped, prompt.num_dropped) == (0, 2)
    assert engine.count_tokens("Hello?") == len(stage.encode("Hello?"))
    stage.says("Hello!")
    assert (await read(engine.generate(prompt, GREEDY))).text == "Hello!"
    assert (engine.info.chat_format, engine.info.default_system_prompt) == ("chatml", "You are a fake.")


async def test_a_base_model_completes_but_does_not_chat(stage: Stage) -> None:
    engine = await stage.open(chat_format=None)
    assert engine.info.chat_format is None
    with pytest.raises(NoChatFormatError):
        engine.fit_prompt([ChatMessage("user", "hi")], 100)
    stage.says("done")
    assert (await read(engine.generate(PROMPT, GREEDY))).text == "done"


async def test_two_hundred_requests_at_once_each_get_their_own_answer(stage: Stage) -> None:
    engine = await stage.open(EngineOptions(max_queue=200))
    stage.respond = lambda request: [*stage.encode(f"answer {request.prompt.ids[0]}"), END]
    generations = [engine.generate(Prompt((number, 5)), GREEDY) for number in range(200)]
    completions = await asyncio.gather(*map(read, generations))
    assert [completion.text for completion in completions] == [f"answer {n}" for n in range(200)]


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
    engine = await stage.open(EngineOptions(max_concurrent=1))
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
        except (EngineUnavailableError, QueueFullError):
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
