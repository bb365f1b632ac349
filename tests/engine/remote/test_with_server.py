"""The client and a real server of a tiny model, each in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.engine import Engine, EngineOptions
from engine.errors import ModelError
from engine.remote.remote_engine import RemoteEngine, Servers
from engine.remote.wire import RefusedError
from engine.types import ChatMessage, Completion, FinishReason, Generation, Health, Prompt, SamplingParams
from tests.engine.engine_stage import wait_until
from tests.engine.remote.server_process import ServerProcess
from tests.engine.tiny_model import make_tiny_model

GREEDY = SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=40)
DIALOG = (ChatMessage("system", "Be brief."), ChatMessage("user", "Hello there, how are you?"))
KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("server") / "model")


@pytest.fixture
async def server(model: Path, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    process = ServerProcess(model, tmp_path, PROVIDER="cpu", ENGINE_KEYS=f"bot:{KEY}")
    await process.start()
    try:
        yield process
    finally:
        await process.kill()


async def read(generation: Generation) -> Completion:
    text = "".join([piece async for piece in generation])
    assert generation.completion is not None
    assert generation.completion.text == text
    return generation.completion


async def test_it_answers_as_the_engine_in_this_process_does(
    server: ServerProcess, model: Path, tmp_path: Path
) -> None:
    """Prompts, text, endings, figures, what is computed ahead, what is forgotten, and refusals."""
    servers = Servers((server.address,), tmp_path / "cache", key=KEY, secret=b"s")
    options = EngineOptions(num_threads=1, device="cpu")
    async with await Engine.open(model, options) as here, await RemoteEngine.open(servers) as there:
        assert there.info == here.info
        assert there.health is Health.READY
        assert there.fingerprint == here.text_files().fingerprint
        assert there.load.max_kv_tokens > 0
        for begun in ("", "Well, "):
            prompt = there.fit_prompt(DIALOG, 300, answer_so_far=begun)
            assert prompt == here.fit_prompt(DIALOG, 300, answer_so_far=begun)
            assert there.tokens_needed(prompt, GREEDY) == here.tokens_needed(prompt, GREEDY)
            ours, its = await read(here.generate(prompt, GREEDY)), await read(there.generate(prompt, GREEDY))
            assert (its.text, its.finish_reason) == (ours.text, ours.finish_reason)
            assert its.usage.num_new_tokens == ours.usage.num_new_tokens
        stop = SamplingParams(
            temperature=0.0, repetition_penalty=1.0, max_new_tokens=40, stop=(ours.text[5:8],)
        )
        assert (await read(there.generate(prompt, stop))).finish_reason is FinishReason.STOP_TEXT

        ahead = there.fit_prompt((*DIALOG[:1], ChatMessage("user", "Once upon a time " * 10)), 400)
        assert await there.warm(ahead, session="a")
        completion = await read(there.generate(ahead, GREEDY, session="a"))
        assert completion.usage.num_cached_tokens >= len(ahead.ids) - 2
        there.drop_idle_cache()
        await wait_until(lambda: not there._replicas._forgetters[0]._owed.is_set())
        assert (await read(there.generate(ahead, GREEDY))).usage.num_cached_tokens == 0

        running = there.generate(prompt, SamplingParams(temperature=1.0, max_new_tokens=300))
        running.cancel()
        assert (await read(running)).finish_reason is FinishReason.CANCELLED
        body = {"prompt": list(prompt.ids), "stream": True}
        with pytest.raises(RefusedError) as caught:
            await _ask(there, server.address, body, {"x-fingerprint": "0" * 64})
        assert (caught.value.status, caught.value.code) == (409, "fingerprint_mismatch")
        with pytest.raises(RefusedError) as caught:
            await _ask(there, server.address, {"prompt": [10**6], "stream": True}, {})
        assert caught.value.status == 400
    with pytest.raises(ModelError, match="ENGINE_KEY"):
        await RemoteEngine.open(Servers((server.address,), tmp_path / "cache", key="another"))


async def _ask(engine: RemoteEngine, address: str, body: dict[str, object], headers: dict[str, str]) -> None:
    async with engine._wire.stream(address, "/v1/completions", body, headers):
        pass


async def test_an_answer_whose_server_is_killed_goes_on_when_it_is_back(
    server: ServerProcess, tmp_path: Path
) -> None:
    servers = Servers((server.address,), tmp_path / "cache", key=KEY)
    async with await RemoteEngine.open(servers) as engine:
        ids = engine.fit_prompt(DIALOG, 300).ids
        params = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=3, max_new_tokens=400)
        places: list[int] = []
        generation = engine.generate(Prompt(ids), params, tell=places.append)
        text = await anext(generation)
        await server.kill()
        restarting = asyncio.ensure_future(server.start())
        rest = [piece async for piece in generation]
        await restarting
        assert generation.completion is not None
        assert generation.completion.text == text + "".join(rest)
        assert generation.completion.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert generation.completion.num_breaks in (0, 1)
        await wait_until(lambda: engine.health is Health.READY)
