"""The GPU's path at the sizes that its kernels take, on the GPU where there is one, and always on the CPU.

`python -m pytest -m gpu` runs what needs a GPU.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engine.convert.converter import convert
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from engine.engine import Engine, EngineOptions
from engine.gpu.loading import Attention, load_paged_model
from engine.gpu.model import PagedModel
from engine.gpu.runner import PagedRunner
from engine.gpu.step import PagedRow
from engine.machine.cuda_device import free_bytes
from engine.runtime.model_folder import RunnerSize
from engine.runtime.sampling import FloatArray
from engine.types import Generation, Prompt, SamplingParams
from tests.engine.engine_stage import read, wait_until
from tests.engine.paged_cpu import GPU_SIZED, row, said
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_model import TinySource

TOLERANCE = 0.06
"""Between half and double precision, on logits of 4 to 5 standard deviations."""
CHUNK = 60
NUM_SLOTS = 64
TEXT = np.random.default_rng(1).integers(3, 380, 1000).tolist()


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model runs, and how it computes attention."""

    device: str
    attention: Attention

    @property
    def free(self) -> int:
        """Bytes that the device has free."""
        return free_bytes() if self.device == "cuda" else 2**30

    def load(self, folder: Path, num_slots: int = NUM_SLOTS) -> PagedModel:
        size = RunnerSize(1, num_slots, 1024, 0, kv_cache_mb=100, unpenalised=frozenset({0, 1, 2}))
        manifest = load_manifest(folder)
        return load_paged_model(
            folder, manifest, size, self.attention, device=self.device, free=lambda: self.free
        )


PLACES = [
    Place("cpu", Attention.PLAIN),
    pytest.param(Place("cuda", Attention.PAGED), marks=pytest.mark.gpu),
    pytest.param(Place("cuda", Attention.PLAIN), marks=pytest.mark.gpu),
]


@pytest.fixture(scope="module", params=PLACES, ids=lambda place: f"{place.device}-{place.attention}")
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.param
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models by precision."""
    parent = tmp_path_factory.mktemp("models")
    for precision in (Precision.FP16, Precision.INT8, Precision.INT4):
        convert(TinySource(GPU_SIZED), parent / precision, precision)
    return parent


@pytest.fixture(scope="module")
def model(place: Place, folders: Path) -> Iterator[PagedModel]:
    model = place.load(folders / "fp16")
    yield model
    model.close()


def read_prompt(model: PagedModel, ids: Sequence[int], blocks: Sequence[int], start: int = 0) -> FloatArray:
    """Compute a prompt in chunks; return the last one's logits."""
    chunks = [row(ids[past : past + CHUNK], past, blocks) for past in range(start, len(ids), CHUNK)]
    last: FloatArray = [said(model, chunk) for chunk in chunks][-1][0]
    return last


def expected(ids: Sequence[int]) -> FloatArray:
    logits: FloatArray = reference_logits(GPU_SIZED, TinySource(GPU_SIZED).tensor, ids)[-1].astype(np.float32)
    return logits


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8, Precision.INT4])
def test_every_precision_says_what_the_cpu_recorded(
    place: Place, folders: Path, precision: Precision
) -> None:
    assert load_manifest(folders / precision).reference is not None
    place.load(folders / precision, num_slots=2).close()


def test_a_prompt_over_several_blocks_says_what_the_paper_says(model: PagedModel) -> None:
    ids = TEXT[:600]
    np.testing.assert_allclose(read_prompt(model, ids, [3, 1, 4]), expected(ids), atol=TOLERANCE)


def test_prompts_and_answers_in_one_run_equal_those_alone(model: PagedModel) -> None:
    first, second, third = TEXT[:300], TEXT[200:750], TEXT[500:540]
    read_prompt(model, first[:-1], [1, 2])
    read_prompt(model, second[:520], [3, 4, 5])
    mixed = said(
        model, row(first[-1:], 299, [1, 2], 0), row(second[520:], 520, [3, 4, 5], 1), row(third, 0, [6], 2)
    )
    for logits, ids in zip(mixed, (first, second, third), strict=True):
        np.testing.assert_allclose(logits, expected(ids), atol=TOLERANCE)


def test_many_answers_of_different_lengths_in_one_step_equal_those_alone(model: PagedModel) -> None:
    lengths = [3 + 13 * (index % 20) for index in range(NUM_SLOTS - 3)]
    rows = []
    for index, length in enumerate(lengths):
        ids = TEXT[index : index + length]
        read_prompt(model, ids[:-1], [1 + index])
        rows.append(row(ids[-1:], length - 1, [1 + index], index))
    logits = said(model, *rows)
    for index in range(0, len(lengths), 7):
        ids = TEXT[index : index + lengths[index]]
        np.testing.assert_allclose(logits[index], expected(ids), atol=TOLERANCE)


def test_steps_started_ahead_are_the_models_own_choice(model: PagedModel) -> None:
    prompts, tables = [TEXT[:250], TEXT[100:200]], [[1, 2], [3]]
    history = [list(ids) for ids in prompts]
    for ids, table in zip(history, tables, strict=True):
        read_prompt(model, ids[:-1], table)
    first = [PagedRow((ids[-1],), len(ids) - 1, table, 0) for ids, table in zip(history, tables, strict=True)]
    runs = [model.start(first)]
    runs += [  # over the end of the first block
        model.follow([PagedRow((0,), each.past + ahead, each.blocks, 0) for each in first])
        for ahead in range(1, 12)
    ]
    for run in runs:
        for ids, sampled in zip(history, run.result(), strict=True):
            ids.append(sampled.token)
    for ids, prompt in zip(history, prompts, strict=True):
        logits = reference_logits(GPU_SIZED, TinySource(GPU_SIZED).tensor, ids[:-1])[len(prompt) - 1 :]
        gap = logits.max(axis=1) - logits[np.arange(12), ids[len(prompt) :]]
        assert gap.max() < 2 * TOLERANCE


async def test_joining_leaving_and_stopping_for_long_leaks_nothing(place: Place, folders: Path) -> None:
    folder, chooser = folders / "int4", random.Random(1)
    size = RunnerSize(1, 24, 1024, 0, kv_cache_mb=40)
    load = partial(
        load_paged_model, folder, load_manifest(folder), size, place.attention, device=place.device
    )
    runners: list[PagedRunner] = []
    steps: list[int] = []
    leaving: list[tuple[int, Generation]] = []
    loop = asyncio.get_running_loop()

    def load_runner() -> PagedRunner:
        runners.append(
            PagedRunner(partial(load, free=lambda: place.free), place.device, place.attention.pace)
        )
        step = runners[-1].step

        def counted(plan):  # type: ignore[no-untyped-def]
            steps.append(len(plan.decode))
            for _, generation in [one for one in leaving if one[0] == len(steps)]:
                loop.call_soon_threadsafe(generation.cancel)
            return step(plan)

        runners[-1].step = counted  # type: ignore[method-assign]
        return runners[-1]

    num_steps = 10_000 if place.device == "cuda" else 100
    options = EngineOptions(num_threads=1, max_concurrent=24, context_tokens=1024)
    engine = Engine(folder, options, load_runner)
    await engine.start()
    free: list[int] = []

    async def ask() -> None:
        ids = TEXT[chooser.randrange(5) :][: chooser.randrange(2, 300)]
        params = SamplingParams(max_new_tokens=chooser.randrange(1, 80), temperature=1.0)
        prompt = Prompt(tuple(ids))
        await wait_until(lambda: engine.load.has_room(engine.tokens_needed(prompt, params)))
        generation = engine.generate(prompt, params)
        if chooser.random() < 0.3:
            leaving.append((len(steps) + chooser.randrange(1, 30), generation))
        await read(generation)

    async with engine:
        while len(steps) < num_steps or len(free) < 3:
            await asyncio.gather(*(ask() for _ in range(30)))
            runners[0].check()
            free.append(place.free)
        assert len(runners) == 1, "no fault made it start anew"
        assert max(steps) > 8
        assert max(free[1:]) - min(free[1:]) < 64 * 2**20
        engine.drop_idle_cache()
        await read(engine.generate(Prompt((5, 6)), SamplingParams(max_new_tokens=1)))
        assert engine.load.num_kv_tokens <= 2
