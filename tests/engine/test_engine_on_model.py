"""The whole engine on a tiny real model: what is batched, cached or moved changes no answer."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.cpu.kv_buffers import KVBuffers
from engine.cpu.kv_disk import BLOCK_TOKENS
from engine.cpu.runner import SlotRunner
from engine.describing.architecture import Precision
from engine.engine import Engine, EngineOptions, kv_room
from engine.opening import open_folder
from engine.runtime.model_folder import DiskRoom
from engine.runtime.runner import Runner
from engine.types import ChatMessage, Completion, Prompt, SamplingParams
from tests.engine.engine_stage import ask, read, wait_until
from tests.engine.tiny_model import make_tiny_model

OPTIONS = EngineOptions(num_threads=1, max_concurrent=4, kv_cache_mb=1)


@pytest.fixture(scope="module", params=[Precision.FP32, Precision.INT4])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", request.param)


async def answer(engine: Engine, prompt: Prompt, seed: int) -> Completion:
    params = SamplingParams(temperature=1.0, max_new_tokens=30, seed=seed)
    return await ask(engine, prompt, params)


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[Runner]:
    """The runners of the engines that a test opens, in order."""
    found, load = list[Runner](), Engine._load_runner

    def load_runner(engine: Engine) -> Runner:
        found.append(load(engine))
        return found[-1]

    monkeypatch.setattr(Engine, "_load_runner", load_runner)
    return found


async def test_kv_that_was_on_disk_changes_no_answer(
    folder: Path, tmp_path: Path, runners: list[Runner]
) -> None:
    rng, found = random.Random(1), []
    pasts = [tuple(rng.randrange(3, 380) for _ in range(300)) for _ in range(6)]
    for room in (None, DiskRoom(tmp_path, 2**26)):
        options = replace(OPTIONS, max_concurrent=1, context_tokens=400, kv_disk=room)
        async with await Engine.open(folder, options) as engine:
            runner = runners[-1]
            assert isinstance(runner, SlotRunner)
            for number, past in enumerate(pasts):
                await answer(engine, Prompt(past), 1)
                if room is not None:  # the older ones are written while nobody asks
                    await wait_until(lambda: _num_written(runner) >= number * (300 // BLOCK_TOKENS))  # noqa: B023
            found.append([await answer(engine, Prompt((*past, 5, 6, 7)), 2) for past in pasts])
            if room is not None:
                assert _num_written(runner) > 0
                engine.drop_idle_cache()
                anew = await answer(engine, Prompt((*pasts[0], 5, 6, 7)), 2)
                assert anew.usage.num_cached_tokens == 0, "what was deleted is gone on disk too"
    assert [one.text for one in found[0]] == [one.text for one in found[1]]
    kept = [[one.usage.num_cached_tokens for one in some] for some in found]
    assert sum(kept[1]) >= sum(kept[0]) + 3 * 256, "and it was read"


def _num_written(runner: SlotRunner) -> int:
    assert runner._disk is not None
    return len(runner._disk._blocks)


async def prompts(engine: Engine) -> list[Prompt]:
    """Return prompts of very different lengths that share their beginning, some of them twice."""
    system = ChatMessage("system", "You are a tiny model. " * 4)
    questions = [
        "Hi",
        "Why is the sea salty? " * 6,
        "Hi",
        "Tell me about water. " * 3,
        "1+1?",
        "Grüße! 🙂",
    ] * 2
    return [engine.fit_prompt([system, ChatMessage("user", question)], 400) for question in questions * 2]


async def test_answers_made_together_are_those_made_alone(folder: Path) -> None:
    async with await Engine.open(folder, OPTIONS) as engine:
        asked = await prompts(engine)
        together = await asyncio.gather(*(answer(engine, prompt, i) for i, prompt in enumerate(asked)))
    alone = []
    for seed, prompt in enumerate(asked):
        async with await Engine.open(folder, OPTIONS) as engine:
            alone.append(await answer(engine, prompt, seed))
    assert [one.text for one in together] == [one.text for one in alone]
    assert all(one.usage.num_cached_tokens == 0 for one in alone)
    assert sum(one.usage.num_cached_tokens for one in together) > 100


async def test_the_next_turn_finds_its_history_and_answers_the_same(folder: Path) -> None:
    first = [ChatMessage("user", "Hello there. " * 10)]
    async with await Engine.open(folder, OPTIONS) as engine:
        reply = await answer(engine, engine.fit_prompt(first, 400), 1)
        dialog = [*first, ChatMessage("assistant", reply.text), ChatMessage("user", "And then?")]
        prompt = engine.fit_prompt(dialog, 400)
        warm = await answer(engine, prompt, 2)
    async with await Engine.open(folder, OPTIONS) as engine:
        cold = await answer(engine, prompt, 2)
    assert warm.usage.num_cached_tokens >= len("Hello there. " * 10) // 4
    assert cold.usage.num_cached_tokens == 0
    assert warm.text == cold.text


async def test_what_was_computed_ahead_changes_no_answer(folder: Path) -> None:
    async with await Engine.open(folder, OPTIONS) as engine:
        asked = await prompts(engine)
    for number, prompt in enumerate(asked[:6]):
        texts = []
        for is_warm in (False, True):
            async with await Engine.open(folder, OPTIONS) as engine:
                beginning = prompt.ids[: 17 * (number + 3)]
                if is_warm:
                    assert await engine.warm(Prompt(beginning))
                completion = await answer(engine, prompt, number)
                expected = min(len(beginning), len(prompt.ids) - 2) if is_warm else 0
                assert completion.usage.num_cached_tokens == expected
                texts.append(completion.text)
        assert texts[0] == texts[1]


async def test_a_dropped_cache_holds_nothing_and_changes_no_answer(folder: Path) -> None:
    async with await Engine.open(folder, OPTIONS) as engine:
        (prompt, *_) = await prompts(engine)
        first = await answer(engine, prompt, 1)
        running = engine.generate(prompt, SamplingParams(temperature=1.0, max_new_tokens=100, seed=1))
        await anext(running)
        engine.drop_idle_cache()
        await read(running)
        await wait_until(lambda: engine.load.num_kv_tokens == 0)
        again = await answer(engine, prompt, 1)
        engine.drop_idle_cache()
        await wait_until(lambda: engine.load.num_kv_tokens == 0)
    assert (again.usage.num_cached_tokens, again.text) == (0, first.text)
    engine.drop_idle_cache()


def resident_bytes(array: np.ndarray) -> int:
    """Return how much of an array is in memory, by `mincore(2)`."""
    pages = (ctypes.c_ubyte * (array.nbytes // mmap.PAGESIZE))()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(array.ctypes.data), array.nbytes, pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="memory cannot be given back here")
async def test_kv_takes_the_memory_that_was_promised_and_no_more(
    tmp_path: Path, runners: list[Runner]
) -> None:
    folder, rng = make_tiny_model(tmp_path / "model"), random.Random(1)
    options = EngineOptions(num_threads=1, max_concurrent=4, context_tokens=512, kv_cache_mb=2)
    promised = kv_room(open_folder(folder), options).num_bytes
    most = 0
    async with await Engine.open(folder, options) as engine:
        (runner,) = runners
        assert isinstance(runner, SlotRunner)
        kv = runner._model.kv
        assert isinstance(kv, KVBuffers)
        assert promised < sum(array.nbytes for array in kv.arrays), "less than all slots could take"

        async def converse() -> None:
            nonlocal most
            ids = [5, 6, 7]
            for _ in range(8):
                fresh = [rng.randrange(3, 380) for _ in range(rng.randrange(150))]
                ids = [*ids[: rng.randrange(3, 300)], *fresh]
                params = SamplingParams(temperature=1.0, max_new_tokens=rng.randrange(1, 60))
                await ask(engine, Prompt(tuple(ids)), params)
                most = max(most, sum(resident_bytes(array) for array in kv.arrays))

        await asyncio.gather(*(converse() for _ in range(6)))
    assert 0.5 * promised < most <= promised
