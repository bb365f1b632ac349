"""The whole engine over a paged cache, the GPU's graph on the CPU: streams that share steps and blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from engine.engine import Engine, EngineOptions
from engine.gpu.loading import Attention, load_paged_model
from engine.gpu.runner import PagedRunner
from engine.runtime.model_folder import RunnerSize
from engine.types import Health, Prompt, SamplingParams
from tests.engine.engine_stage import ask, read, wait_until
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_model import EOS_ID, TinySource, make_tiny_model, tiny_config

MARGIN = 0.05
"""Logits nearer than this may change places in half precision; they have 2.4 standard deviations."""
OPTIONS = EngineOptions(num_threads=1, max_concurrent=6, context_tokens=500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("paged") / "model", Precision.FP16)


@pytest.fixture
def runners() -> list[PagedRunner]:
    """Return the runners that engines were given."""
    return []


async def open_engine(
    folder: Path, runners: list[PagedRunner], *, free: int = 2**30, num_answers: int = 6
) -> Engine:
    """Return the engine as it is on a GPU with so many free bytes."""
    size = RunnerSize(1, num_answers, 500, 0, unpenalised=frozenset({0, 1, 2}))

    def load_runner() -> PagedRunner:
        load = partial(
            load_paged_model,
            folder,
            load_manifest(folder),
            size,
            Attention.PLAIN,
            device="cpu",
            free=lambda: free,
        )
        runners.append(PagedRunner(load, "cuda", Attention.PLAIN.pace))
        return runners[-1]

    engine = Engine(folder, OPTIONS, load_runner)
    await engine.start()
    return engine


def prompt(seed: int, length: int) -> Prompt:
    return Prompt(tuple(np.random.default_rng(seed).integers(3, 380, length).tolist()))


def greedy_gap(ids: Sequence[int], num_prompt: int) -> float:
    """Return by how much a token of an answer was less likely than the likeliest one, at most."""
    logits = reference_logits(tiny_config(), TinySource().tensor, ids[:-1])[num_prompt - 1 :]
    chosen = logits[np.arange(len(logits)), list(ids[num_prompt:])]
    return float((logits.max(axis=1) - chosen).max())


async def test_answers_made_together_are_the_models_own(
    folder: Path, runners: list[PagedRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[tuple[int, ...], list[int]] = {}
    release = PagedRunner.release

    def note(runner: PagedRunner, request: object, *, keep: bool) -> None:
        said[request.prompt.ids] = list(request.ids)  # type: ignore[attr-defined]
        release(runner, request, keep=keep)  # type: ignore[arg-type]

    monkeypatch.setattr(PagedRunner, "release", note)
    engine = await open_engine(folder, runners)
    asked = [prompt(seed, 3 + 23 * seed % 190) for seed in range(14)]
    params = SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=25)
    async with engine:
        assert engine.info.provider == "cuda"
        answers = await asyncio.gather(*(ask(engine, each, params) for each in asked))
        runners[0].check()
    assert all(answer.usage.num_new_tokens == 25 or said[each.ids][-1] == EOS_ID
               for answer, each in zip(answers, asked, strict=True))  # fmt: skip
    for each in asked:
        assert greedy_gap(said[each.ids], len(each.ids)) < MARGIN


async def test_the_next_turn_shares_the_blocks_of_the_last_one(
    folder: Path, runners: list[PagedRunner]
) -> None:
    engine = await open_engine(folder, runners)
    params = SamplingParams(temperature=0.0, max_new_tokens=5)
    async with engine:
        first = prompt(1, 300)
        await read(engine.generate(first, params))
        again = await read(engine.generate(Prompt((*first.ids, *prompt(2, 20).ids)), params))
        other = await read(engine.generate(prompt(3, 320), params))
        assert (again.usage.num_cached_tokens, other.usage.num_cached_tokens) == (256, 0)
        assert engine.load.max_kv_tokens == runners[0].max_kv_tokens == 2 * 6 * 512
        engine.drop_idle_cache()
        anew = await read(engine.generate(first, params))
        assert anew.usage.num_cached_tokens == 0


async def test_a_small_cache_has_room_for_fewer_answers_and_loses_none(
    folder: Path, runners: list[PagedRunner]
) -> None:
    engine = await open_engine(folder, runners, free=2**20)
    params = SamplingParams(temperature=1.0, seed=1, max_new_tokens=60)
    async with engine:
        assert runners[0].max_kv_tokens < 6 * 500
        answers = await asyncio.gather(
            *(ask(engine, prompt(seed, 200 + 7 * seed), params) for seed in range(20))
        )
        runners[0].check()
    assert len(answers) == 20
    assert all(answer.usage.num_new_tokens > 0 for answer in answers)


async def test_stopping_answers_at_any_time_leaves_the_books_right(
    folder: Path, runners: list[PagedRunner]
) -> None:
    engine = await open_engine(folder, runners)
    params = SamplingParams(temperature=1.0, max_new_tokens=200)
    async with engine:
        for batch in range(3):
            running = [engine.generate(prompt(10 * batch + seed, 5 + 40 * seed), params) for seed in range(6)]
            reading = [asyncio.create_task(read(generation)) for generation in running]
            for index, generation in enumerate(running):
                await asyncio.sleep(0.004 * index)
                generation.cancel()
            await asyncio.gather(*reading)
            runners[0].check()
        last = await read(engine.generate(prompt(99, 20), SamplingParams(max_new_tokens=3)))
        assert last.usage.num_new_tokens > 0
        engine.drop_idle_cache()
        await read(engine.generate(prompt(98, 2), SamplingParams(max_new_tokens=1)))
        assert engine.load.num_kv_tokens <= 2


async def test_a_seed_gives_the_same_answer_again(folder: Path, runners: list[PagedRunner]) -> None:
    texts = []
    for _ in range(2):
        async with await open_engine(folder, runners) as engine:
            params = SamplingParams(temperature=0.9, seed=7, max_new_tokens=40, repetition_penalty=1.2)
            texts.append((await read(engine.generate(prompt(5, 40), params))).text)
    assert texts[0] == texts[1] != ""


async def test_a_fault_of_the_device_ends_what_ran_and_the_next_answer_comes(
    folder: Path, runners: list[PagedRunner]
) -> None:
    from engine.errors import GenerationFailedError

    engine = await open_engine(folder, runners)
    async with engine:
        generation = engine.generate(prompt(1, 30), SamplingParams(max_new_tokens=400, temperature=1.0))
        await anext(generation)
        broken = runners[0]._model
        broken.start = broken.follow = _broken  # type: ignore[method-assign, assignment]
        with pytest.raises(GenerationFailedError):
            await read(generation)
        await wait_until(lambda: engine.health is Health.READY)
        assert (await read(engine.generate(prompt(2, 9), SamplingParams(max_new_tokens=3)))).text is not None


def _broken(rows: object) -> object:
    raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
