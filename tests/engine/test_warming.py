"""What is computed ahead: it is there when it is needed, holds up nobody, and changes no answer."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.cpu.runner import SlotRunner
from engine.engine import Engine, EngineOptions
from engine.gpu.runner import PagedRunner
from engine.runtime.runner import StepResult
from engine.runtime.scheduler import PrefillPace, StepPlan
from engine.types import Completion, FinishReason, Health, Prompt, SamplingParams, Warming
from tests.engine.engine_stage import TIMEOUT_S, ask, read, wait_until
from tests.engine.fakes import STOP_ID, VOCAB_SIZE, HistoryModel, make_model_folder
from tests.engine.paged_fakes import HistoryBlocks

PAGE_TOKENS = 8
CONTEXT = 256
PACE = PrefillPace(largest=64, first_tokens_per_s=1000.0)
"""Alone 64 tokens a step, beside others fewer."""


class PacedSlots(SlotRunner):
    """Takes small steps."""

    pace = PACE


class Stage:
    """An engine over a fake model whose steps can be held up; `plans` are the steps so far."""

    def __init__(self, folder: Path, max_kv_tokens: int, *, paged: bool, num_answers: int = 4) -> None:
        self.plans: list[StepPlan] = []
        self.may_step = threading.Event()
        self.may_step.set()
        self.is_stepping = threading.Event()
        self.strikes = False
        self.is_paged = paged
        options = EngineOptions(max_concurrent=num_answers, context_tokens=CONTEXT)
        make = self._blocks if paged else self._slots
        model = make_model_folder(folder / f"model-{len(list(folder.iterdir()))}", context_length=CONTEXT)
        self.engine = Engine(model, options, lambda: self._watched(make(max_kv_tokens, num_answers)))

    def whole(self, num_tokens: int) -> int:
        """Return how many of so many tokens are kept: a GPU shares whole blocks."""
        return num_tokens // PAGE_TOKENS * PAGE_TOKENS if self.is_paged else num_tokens

    def hold(self) -> None:
        """Keep the engine in its next step."""
        self.is_stepping.clear()
        self.may_step.clear()

    async def is_held(self) -> None:
        """Wait until it is there."""
        assert await asyncio.to_thread(self.is_stepping.wait, TIMEOUT_S)

    async def num_cached(self, ids: tuple[int, ...]) -> int:
        """Return how much of a prompt is found when somebody asks."""
        completion = await ask(self.engine, Prompt(ids), SamplingParams(temperature=1.0, max_new_tokens=1))
        return completion.usage.num_cached_tokens

    def _slots(self, max_kv_tokens: int, num_answers: int) -> SlotRunner:
        num_slots = 2 * num_answers
        return PacedSlots(lambda: HistoryModel(num_slots, CONTEXT, PAGE_TOKENS), num_slots, max_kv_tokens)

    def _blocks(self, max_kv_tokens: int, num_answers: int) -> PagedRunner:
        num_blocks = 1 + max_kv_tokens // PAGE_TOKENS
        return PagedRunner(
            lambda: HistoryBlocks(num_blocks, PAGE_TOKENS, num_answers, [STOP_ID]), "fake", PACE
        )

    def _watched(self, runner: SlotRunner | PagedRunner) -> SlotRunner | PagedRunner:
        step = runner.step

        def watched(plan: StepPlan) -> StepResult:
            self.plans.append(plan)
            self.is_stepping.set()
            assert self.may_step.wait(TIMEOUT_S)
            if self.strikes:
                self.strikes = False
                raise RuntimeError("CUDA error 700")
            result = step(plan)
            runner.check()
            return result

        runner.step = watched  # type: ignore[method-assign]
        self.runner = runner
        return runner


MakeStage = Callable[..., Stage]


@pytest.fixture(params=["slots", "blocks"])
def make_stage(tmp_path: Path, request: pytest.FixtureRequest) -> MakeStage:
    def make(max_kv_tokens: int = 8 * CONTEXT, num_answers: int = 4) -> Stage:
        return Stage(tmp_path, max_kv_tokens, paged=request.param == "blocks", num_answers=num_answers)

    return make


def tokens(seed: int, length: int) -> tuple[int, ...]:
    chooser = random.Random(seed)
    return tuple(chooser.randrange(3, VOCAB_SIZE) for _ in range(length))


@pytest.mark.parametrize("seed", range(6))
async def test_answers_are_the_same_whatever_was_computed_ahead(make_stage: MakeStage, seed: int) -> None:
    rng = random.Random(seed)
    stage = make_stage(rng.choice((512, 1024)))
    pasts = [tokens(seed * 10 + number, 9) for number in range(5)]
    running: list[tuple[Prompt, SamplingParams, asyncio.Task[Completion]]] = []
    num_kept = num_given_up = 0
    async with stage.engine as engine:
        await engine.start()
        for number in range(120):
            which = rng.randrange(len(pasts))
            likely = [
                tokens(99, 9) + past[: rng.choice((200, rng.randrange(1, 200)))]
                for past in rng.sample(pasts, 3)
            ]
            warmings = [engine.warm(Prompt(ids)) for ids in likely[: rng.randrange(4)]]
            if warmings and rng.random() < 0.2:
                rng.choice(warmings).cancel()
            if rng.random() < 0.7:
                kept = await asyncio.gather(*warmings)
                num_kept, num_given_up = num_kept + sum(kept), num_given_up + kept.count(False)
            if rng.random() < 0.05:
                engine.drop_idle_cache()
            pasts[which] = (pasts[which] + tokens(number, rng.randrange(1, 40)))[-rng.choice((210, 60)) :]
            params = SamplingParams(temperature=1.0, max_new_tokens=rng.randrange(1, 20), seed=number)
            prompt = Prompt((*tokens(99, 9), *pasts[which]))
            await wait_until(lambda: engine.load.has_room(engine.tokens_needed(prompt, params)))  # noqa: B023
            task = asyncio.create_task(read(engine.generate(prompt, params)))
            running.append((prompt, params, task))
            if rng.random() < 0.7:
                await task
        answers = [(await task).text for *_, task in running]
    async with make_stage().engine as engine:
        await engine.start()
        for answer, (prompt, params, _) in zip(answers, running, strict=True):
            engine.drop_idle_cache()
            assert answer == (await read(engine.generate(prompt, params))).text
    assert min(num_kept, num_given_up) > 10, "both was met"


async def test_what_was_computed_ahead_is_there_when_somebody_asks(make_stage: MakeStage) -> None:
    stage = make_stage()
    beginning = tokens(1, 203)
    async with stage.engine as engine:
        await engine.start()
        assert await engine.warm(Prompt(beginning))
        assert (engine.load.num_requests, engine.load.num_reserved_tokens) == (0, 0)
        assert engine.load.num_kv_tokens == stage.whole(203)
        num_steps = len(stage.plans)
        assert await engine.warm(Prompt(beginning))
        assert await engine.warm(Prompt(beginning[:100]))
        assert len(stage.plans) == num_steps, "what is kept already is not computed again"
        assert await stage.num_cached((*beginning, 5, 6, 7)) == stage.whole(203)
    assert all(plan.num_prefill > 1 for plan in stage.plans), "a token alone rounds differently"


async def test_a_question_waits_for_one_step_at_most_and_finds_what_was_computed(
    make_stage: MakeStage,
) -> None:
    stage = make_stage()
    beginning = tokens(1, 250)
    async with stage.engine as engine:
        await engine.start()
        stage.hold()
        warming = engine.warm(Prompt(beginning))
        await stage.is_held()
        asked = engine.generate(Prompt((60, 61, 62)), SamplingParams(temperature=1.0, max_new_tokens=2))
        stage.may_step.set()
        assert not await warming
        await read(asked)
        assert [chunk.num_tokens for chunk in stage.plans[1].prefill] == [3], "no more of the other"
        assert stage.plans[0].num_prefill == 64
        assert await stage.num_cached((*beginning, 5, 6, 7)) == 64


async def test_beside_an_answer_nothing_is_computed_ahead(make_stage: MakeStage) -> None:
    stage = make_stage()
    async with stage.engine as engine:
        await engine.start()
        stage.hold()
        asked = engine.generate(Prompt((5, 6, 7)), SamplingParams(temperature=1.0, max_new_tokens=200))
        await stage.is_held()
        warming = engine.warm(Prompt(tokens(1, 100)))
        stage.may_step.set()
        assert not await warming
        asked.cancel()
        await read(asked)
    assert all(plan.num_prefill <= 3 for plan in stage.plans)


async def test_the_likelier_ones_stay_where_there_is_no_room_for_all(make_stage: MakeStage) -> None:
    stage = make_stage(2 * CONTEXT, num_answers=1)
    first, second, third = (tokens(number, 200) for number in (1, 2, 3))
    async with stage.engine as engine:
        await engine.start()
        old = tokens(4, 200)
        await stage.num_cached(old)
        assert [await engine.warm(Prompt(ids)) for ids in (first, second, third)] == [True, True, False]
        assert engine.load.has_room(CONTEXT), "what is only expected gives way"
        assert await stage.num_cached((*tokens(5, 150), 5, 6)) == 0
        assert await stage.num_cached((*first, 5, 6)) == stage.whole(200)
        assert await stage.num_cached((*second, 5, 6)) < 200


async def test_what_was_forgotten_meanwhile_is_not_said_to_be_kept(make_stage: MakeStage) -> None:
    stage = make_stage()
    async with stage.engine as engine:
        await engine.start()
        stage.hold()
        warming = engine.warm(Prompt(tokens(1, 250)))
        await stage.is_held()
        engine.drop_idle_cache()
        again = engine.warm(Prompt(tokens(2, 100)))
        stage.may_step.set()
        assert not await warming
        assert await again
        assert await stage.num_cached((*tokens(1, 250), 5)) == 0
        assert await stage.num_cached((*tokens(2, 100), 5, 6)) == stage.whole(100)


async def test_it_can_be_given_up(make_stage: MakeStage) -> None:
    stage = make_stage()
    async with stage.engine as engine:
        await engine.start()
        stage.hold()
        warming = engine.warm(Prompt(tokens(1, 250)))
        await stage.is_held()
        warming.cancel()
        warming.cancel()
        stage.may_step.set()
        assert not await warming
        await stage.num_cached((5, 6, 7))
        assert [chunk.request.is_ahead for chunk in stage.plans[1].prefill] == [False]
        unheeded = asyncio.ensure_future(_wait(engine.warm(Prompt(tokens(2, 250)))))
        await asyncio.sleep(0)
        unheeded.cancel()
    assert engine.health is Health.CLOSED
    assert not await engine.warm(Prompt((5, 6, 7)))


async def _wait(warming: Warming) -> bool:
    return await warming


async def test_closing_and_a_fault_end_it(make_stage: MakeStage, caplog: pytest.LogCaptureFixture) -> None:
    stage = make_stage()
    async with stage.engine as engine:
        await engine.start()
        stage.strikes = True
        assert not await engine.warm(Prompt(tokens(1, 100)))
        await wait_until(lambda: engine.health is Health.READY)
        assert await engine.warm(Prompt(tokens(1, 100)))
        assert not await engine.warm(Prompt(()))
        assert not await engine.warm(Prompt(tokens(1, CONTEXT)))
        warming = engine.warm(Prompt(tokens(2, 250)))
    assert not await warming
    assert "The model failed" in caplog.text


async def test_a_cancelled_answer_ends_as_before(make_stage: MakeStage) -> None:
    stage = make_stage()
    async with stage.engine as engine:
        await engine.start()
        engine.warm(Prompt(tokens(1, 250)))
        generation = engine.generate(Prompt((5, 6, 7)), SamplingParams(temperature=1.0))
        generation.cancel()
        completion = await read(generation)
    assert completion.finish_reason is FinishReason.CANCELLED
