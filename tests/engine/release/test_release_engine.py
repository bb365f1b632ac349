"""The engine on a release as it is: one answer at a time, the others wait, the conversation's KV is kept."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from engine.bench.peers import PublishedLoop
from engine.engine import Engine, EngineOptions
from engine.errors import ModelFormatError, NoChatFormatError, NoRoomError
from engine.types import ChatMessage, Prompt, SamplingParams
from tests.engine.engine_stage import ask, read
from tests.engine.releases import copy_release, graph_of, release

GREEDY = SamplingParams(temperature=0, repetition_penalty=1, max_new_tokens=12)
OPTIONS = EngineOptions(num_threads=1)


async def test_answers_are_the_published_loops(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with await Engine.open(release(), OPTIONS) as engine:
            prompt = Prompt((1, 50, 60, 70, 80))
            completion = await read(engine.generate(prompt, GREEDY))
    expected = PublishedLoop(release()).generate(prompt.ids, 12)
    assert completion.usage.num_new_tokens == len(expected)
    decoder = engine.text.tokenizer.token_bytes
    whole = b"".join(decoder[token] for token in expected).decode(errors="replace")
    assert completion.text == whole.removeprefix(" ")
    assert f"python -m engine convert {release()} DESTINATION" in caplog.text
    assert (engine.info.chat_format, engine.info.precision) == ("llama-2", "fp32")
    assert engine.info.context_length == 128


async def test_many_ask_and_are_answered_in_turn() -> None:
    prompts = [Prompt((1, *range(40 + index, 60 + index))) for index in range(5)]
    async with await Engine.open(release(), OPTIONS) as engine:
        completions = await asyncio.gather(*(ask(engine, p, GREEDY) for p in prompts))
    async with await Engine.open(release(), OPTIONS) as engine:
        alone = [await read(engine.generate(prompt, GREEDY)) for prompt in prompts]
    assert [c.text for c in completions] == [c.text for c in alone]


async def test_a_conversation_goes_on_where_it_was() -> None:
    async with await Engine.open(release(), OPTIONS) as engine:
        first = Prompt((1, *range(40, 70)))
        await read(engine.generate(first, GREEDY))
        longer = Prompt((*first.ids, 90, 91, 92))
        completion = await read(engine.generate(longer, GREEDY))
        assert completion.usage.num_cached_tokens == len(first.ids)
        other = await read(engine.generate(Prompt((2, 3, 4)), GREEDY))
        assert other.usage.num_cached_tokens == 0
        again = await read(engine.generate(longer, GREEDY))
    assert again.text == completion.text


async def test_it_holds_one_answer_and_a_cancelled_one_frees_the_place() -> None:
    async with await Engine.open(release(), OPTIONS) as engine:
        endless = engine.generate(Prompt((1, 50)), SamplingParams(max_new_tokens=100, seed=1))
        assert (engine.load.num_requests, engine.load.max_requests) == (1, 1)
        with pytest.raises(NoRoomError):
            engine.generate(Prompt((1, 51)), GREEDY)
        endless.cancel()
        assert (await ask(engine, Prompt((1, 51)), GREEDY)).usage.num_new_tokens > 0


async def test_a_base_model_cannot_chat(tmp_path: Path) -> None:
    folder = copy_release(tmp_path, name="tiny_float32")
    async with await Engine.open(folder, OPTIONS) as engine:
        assert engine.info.chat_format is None
        with pytest.raises(NoChatFormatError):
            engine.fit_prompt([ChatMessage("user", "Hello")], 100)


async def test_a_bad_release_does_not_open(tmp_path: Path) -> None:
    folder = copy_release(tmp_path)
    graph_of(folder).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelFormatError, match="git lfs pull"):
        await Engine.open(folder, OPTIONS)
