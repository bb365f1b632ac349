"""The engine as the bot sees it: streams, limits and refusals, over a scripted model."""

from __future__ import annotations

import asyncio
import logging

import pytest

from engine.engine import EngineOptions
from engine.errors import (
    NoChatFormatError,
    NoRoomError,
    PromptTooLongError,
)
from engine.types import (
    ChatMessage,
    FinishReason,
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
    assert (completion.text, completion.finish_reason) == ("one", FinishReason.STOP_TEXT)


async def test_what_only_began_like_a_stop_string_is_shown_in_the_end(stage: Stage) -> None:
    engine = await stage.open()
    stage.says("one\nUse")
    completion = await read(engine.generate(PROMPT, SamplingParams(0, stop=("\nUser:",))))
    assert completion.text == "one\nUse"
    stage.answers(stage.encode("\U0010ffff")[:1])
    completion = await read(engine.generate(PROMPT, SamplingParams(0, max_new_tokens=1)))
    assert (completion.text, completion.finish_reason) == ("\ufffd", FinishReason.LENGTH)


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


@pytest.mark.parametrize("moment", ["at once", "while running", "after the end"])
async def test_cancelling_at_any_time(stage: Stage, moment: str) -> None:
    engine = await stage.open(EngineOptions(max_concurrent=1))
    stage.says_for_ever("a", step_s=0.001)
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
    if moment == "at once":
        assert completion.text == ""
    stage.says("fine")
    assert (await read(engine.generate(PROMPT, GREEDY))).text == "fine"


async def test_a_full_engine_refuses_and_has_room_again_later(stage: Stage) -> None:
    engine = await stage.open(EngineOptions(max_concurrent=3))
    stage.says_for_ever("a", step_s=0.001)
    generations = [engine.generate(PROMPT, GREEDY) for _ in range(3)]
    assert (engine.load.num_requests, engine.load.max_requests) == (3, 3)
    assert not engine.load.has_room(1)
    with pytest.raises(NoRoomError, match="Try again"):
        engine.generate(PROMPT, GREEDY)
    for generation in generations:
        generation.cancel()
        await read(generation)
    assert (engine.load.num_requests, engine.load.num_reserved_tokens) == (0, 0)
    stage.says("fine")
    assert (await read(engine.generate(PROMPT, GREEDY))).text == "fine"


async def test_the_log_says_at_the_start_for_how_many_there_is_room(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stage.runner.max_kv_tokens = 3 * 512 + 511
    await stage.open()
    assert "Room for 3 answers of 512 tokens at once, or for up to 8 shorter ones." in caplog.text


async def test_an_answer_reserves_its_prompt_and_what_may_come(stage: Stage) -> None:
    engine = await stage.open(EngineOptions(context_tokens=500))
    stage.says_for_ever("a", step_s=0.001)
    stage.runner.max_kv_tokens = 900
    short = SamplingParams(0, max_new_tokens=60)
    assert engine.tokens_needed(PROMPT, short) == 63
    assert engine.tokens_needed(PROMPT, GREEDY) == 500, "no answer grows past the context"
    stage.runner.block_size = 16
    engine = await stage.open(EngineOptions(context_tokens=500))
    assert engine.tokens_needed(PROMPT, short) == 64
    assert engine.tokens_needed(PROMPT, GREEDY) == 512
    first = engine.generate(PROMPT, GREEDY)
    assert engine.load.num_reserved_tokens == 512
    assert not engine.load.has_room(engine.tokens_needed(PROMPT, GREEDY))
    with pytest.raises(NoRoomError):
        engine.generate(PROMPT, GREEDY)
    second = engine.generate(PROMPT, short)
    assert engine.load.num_reserved_tokens == 576
    for generation in (first, second):
        generation.cancel()
        await read(generation)
    assert engine.load.num_reserved_tokens == 0


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


async def test_what_was_tokenised_is_forgotten_with_the_cache(stage: Stage) -> None:
    engine = await stage.open()
    engine.fit_prompt([ChatMessage("user", "my secret")], 500)
    assert any("my secret" in text for _, text in engine.text.tokenizer._known)
    engine.drop_idle_cache()
    assert not engine.text.tokenizer._known


async def test_an_answer_that_was_begun_is_gone_on_with(stage: Stage) -> None:
    engine = await stage.open()
    dialog = [ChatMessage("user", "old"), ChatMessage("assistant", "older"), ChatMessage("user", "Count!")]
    whole = engine.fit_prompt(dialog, 500)
    begun = engine.fit_prompt(dialog, 500, answer_so_far="One, two,")
    assert (whole.is_continued, begun.is_continued) == (False, True)
    assert begun.ids == (*whole.ids, *stage.encode("One, two,"))
    assert engine.fit_prompt(dialog, len(begun.ids) - 1, answer_so_far="One, two,").num_dropped == 2
    stage.says(" three.")
    assert (await read(engine.generate(begun, GREEDY))).text == " three."


async def test_a_base_model_completes_but_does_not_chat(stage: Stage) -> None:
    engine = await stage.open(chat_format=None)
    assert engine.info.chat_format is None
    with pytest.raises(NoChatFormatError):
        engine.fit_prompt([ChatMessage("user", "hi")], 100)
    stage.says("done")
    assert (await read(engine.generate(PROMPT, GREEDY))).text == "done"


async def test_two_hundred_requests_at_once_each_get_their_own_answer(stage: Stage) -> None:
    stage.runner.max_kv_tokens = 200 * 512
    engine = await stage.open(EngineOptions(max_concurrent=200))
    stage.respond = lambda request: [*stage.encode(f"answer {request.prompt.ids[0]}"), END]
    generations = [engine.generate(Prompt((number, 5)), GREEDY) for number in range(200)]
    completions = await asyncio.gather(*map(read, generations))
    assert [completion.text for completion in completions] == [f"answer {n}" for n in range(200)]
