"""What the engine says it has room for, its cache has room for, whatever is asked, stopped or broken."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import kernels
from engine.cpu.runner import SlotRunner
from engine.describing.architecture import LLAMA_2_SIZES, Precision
from engine.describing.footprint import PROCESS_BYTES, weight_bytes
from engine.describing.manifest import WEIGHTS_FILE, ChatSpec, FileEntry, Manifest, TokenizerSpec
from engine.engine import Engine, EngineOptions, kv_room
from engine.errors import GenerationFailedError, NoRoomError
from engine.gpu.runner import PagedRunner
from engine.machine import machine
from engine.opening import ConvertedFolder
from engine.runtime.request import Request
from engine.runtime.runner import StepResult
from engine.runtime.scheduler import PrefillPace, StepPlan
from engine.types import Completion, FinishReason, Generation, Health, Prompt, SamplingParams
from tests.engine.engine_stage import TIMEOUT_S, ask, read, wait_until
from tests.engine.fakes import STOP_ID, VOCAB_SIZE, HistoryModel, make_model_folder, run_alone
from tests.engine.paged_fakes import HistoryBlocks

PAGE_TOKENS = 8
ENDLESS = SamplingParams(temperature=1.0, max_new_tokens=30_000)


class Room:
    """An engine over a fake model, and what its cache really holds for requests at any time."""

    def __init__(self, folder: Path, max_kv_tokens: int, options: EngineOptions, *, paged: bool) -> None:
        self.held: dict[Request, int] = {}
        self.num_placed = self.num_loads = self.most_held = 0
        self.num_together: list[int] = []
        self.may_step = threading.Event()
        self.may_step.set()
        self.strikes = self._is_broken = False
        """`strikes`: whether the next step fails, after which nothing is placed until the reload."""
        make = self._paged if paged else self._slots
        model = make_model_folder(folder / "model", context_length=options.context_tokens)
        self.engine = Engine(model, options, lambda: self._watched(make(max_kv_tokens, options)))

    def check(self) -> None:
        """Nothing is held that is not accounted for. Call on the loop, where the accounts stand still."""
        held, load = dict(self.held), self.engine.load
        assert sum(held.values()) <= load.num_reserved_tokens <= load.max_kv_tokens
        assert len(held) <= load.num_requests <= load.max_requests
        assert load.num_kv_tokens <= load.max_kv_tokens

    def _slots(self, max_kv_tokens: int, options: EngineOptions) -> SlotRunner:
        num_slots = 2 * options.max_concurrent

        def load() -> HistoryModel:
            self.num_loads += 1
            return HistoryModel(num_slots, options.context_tokens, PAGE_TOKENS)

        return SlotRunner(load, num_slots, max_kv_tokens)

    def _paged(self, max_kv_tokens: int, options: EngineOptions) -> PagedRunner:
        def load() -> HistoryBlocks:
            self.num_loads += 1
            num_blocks = 1 + max_kv_tokens // PAGE_TOKENS
            return HistoryBlocks(num_blocks, PAGE_TOKENS, options.max_concurrent, [STOP_ID])

        return PagedRunner(load, "fake", PrefillPace(largest=64))

    def _watched(self, runner: SlotRunner | PagedRunner) -> SlotRunner | PagedRunner:
        place, release, step, reload = runner.place, runner.release, runner.step, runner.reload

        def watched_place(request: Request) -> bool:
            assert not self._is_broken
            if not place(request):
                return False
            self.num_placed += 1
            if isinstance(runner, SlotRunner):
                self.held[request] = runner._slots[runner._slot_of[request]].num_reserved
            else:
                self.held[request] = len(runner._sequences[request].table.blocks) * PAGE_TOKENS
            self.most_held = max(self.most_held, sum(self.held.values()))
            return True

        def watched_release(request: Request, *, keep: bool) -> None:
            release(request, keep=keep)
            self.held.pop(request, None)

        def watched_step(plan: StepPlan) -> StepResult:
            assert set(plan.decode) | {chunk.request for chunk in plan.prefill} <= self.held.keys()
            assert self.may_step.wait(TIMEOUT_S)
            self.num_together.append(len(plan.decode) + len(plan.prefill))
            if self.strikes:
                self.strikes, self._is_broken = False, True
                self.held.clear()
                raise RuntimeError("CUDA error 700")
            return step(plan)

        def watched_reload() -> None:
            reload()
            self._is_broken = False

        runner.place, runner.release = watched_place, watched_release  # type: ignore[method-assign]
        runner.step, runner.reload = watched_step, watched_reload  # type: ignore[method-assign]
        self.runner = runner
        return runner


MakeRoom = Callable[[int, EngineOptions], Room]


@pytest.fixture(params=["slots", "blocks"])
def make_room(tmp_path: Path, request: pytest.FixtureRequest) -> MakeRoom:
    return lambda max_kv_tokens, options: Room(
        tmp_path, max_kv_tokens, options, paged=request.param == "blocks"
    )


async def outcome(generation: Generation) -> Completion | GenerationFailedError:
    """Read an answer to its end, whatever that is."""
    try:
        return await read(generation)
    except GenerationFailedError as error:
        return error


@pytest.mark.parametrize("seed", range(5))
async def test_random_traffic_never_finds_less_room_than_was_said(
    make_room: MakeRoom, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    room = make_room(704, EngineOptions(max_concurrent=6, context_tokens=256))
    running: dict[asyncio.Task[Completion | GenerationFailedError], Generation] = {}
    endings: list[Completion | GenerationFailedError] = []
    num_refused = num_faults = last_fault = most = 0
    caplog.set_level(logging.ERROR, "engine.runtime.worker")
    async with room.engine as engine:
        await engine.start()
        while len(endings) < 150 or num_faults < 2:
            act = rng.random()
            if act < 0.7:
                ids = [5, 6, 7, *(rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(1, 200)))]
                prompt = Prompt(tuple(ids))
                params = SamplingParams(temperature=1.0, max_new_tokens=rng.randrange(1, 120))
                has_room = engine.load.has_room(engine.tokens_needed(prompt, params))
                if has_room:
                    generation = engine.generate(prompt, params)
                    running[asyncio.create_task(outcome(generation))] = generation
                else:
                    num_refused += 1
                    with pytest.raises(NoRoomError):
                        engine.generate(prompt, params)
            elif act < 0.85 and running:
                rng.choice(list(running.values())).cancel()
            elif act < 0.87 and len(room.num_together) > last_fault + 20:
                num_faults, last_fault = num_faults + 1, len(room.num_together)
                room.strikes = True
            elif act < 0.9:
                engine.drop_idle_cache()
            room.check()
            most = max(most, engine.load.num_requests)
            await asyncio.sleep(0.0005 if rng.random() < 0.7 else 0)
            room.check()
            ended = [task for task in running if task.done()]
            endings += [task.result() for task in ended]
            running = {task: generation for task, generation in running.items() if task not in ended}
        room.strikes = False
        for generation in running.values():
            generation.cancel()
        endings += await asyncio.gather(*running)
        assert (engine.load.num_requests, engine.load.num_reserved_tokens, room.held) == (0, 0, {})
        room.runner.check()
    whole = [one for one in endings if isinstance(one, Completion)]
    assert not any(isinstance(one, NoRoomError) for one in endings), "what was taken had its place"
    assert len(whole) > 100
    assert any(one.finish_reason is FinishReason.CANCELLED for one in whole)
    assert min(num_refused, num_faults, most, room.num_loads - 1) > 1, "all of it was met"


@pytest.mark.parametrize(
    ("free_gib", "reserved_gib", "kv_cache_mb", "num_whole"),
    [(9, 0, 0, 1), (24, 0, 0, 3), (24, 6, 0, 2), (300, 0, 0, 16), (None, 0, 0, 4), (9, 0, 12 * 1024, 3)],
)
def test_kv_follows_what_is_free_and_what_the_settings_promise(
    monkeypatch: pytest.MonkeyPatch,
    free_gib: int | None,
    reserved_gib: int,
    kv_cache_mb: int,
    num_whole: int,
) -> None:
    """Llama 2 7B in 4 bits, 8 answers of 4,096 tokens; each token's KV takes 1 MiB."""
    monkeypatch.setenv(kernels.SWITCH, "off")  # so that the weights take the same on every machine
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 * 2**30)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: free_gib and free_gib * 2**30)
    config = LLAMA_2_SIZES["Llama 2 7B"]
    entries = {WEIGHTS_FILE: FileEntry(weight_bytes(config, Precision.INT4), "")}
    spec, chat = TokenizerSpec("sentencepiece", "tokenizer.model"), ChatSpec("llama-2")
    manifest = Manifest("7B", Precision.INT4, config, spec, chat, 1, 2, {}, entries, {})
    folder = ConvertedFolder(Path(), manifest)
    options = EngineOptions(kv_cache_mb=kv_cache_mb, reserved_bytes=reserved_gib * 2**30)
    room = kv_room(folder, options)
    assert room.num_tokens // 4096 == num_whole
    assert room.num_bytes == (room.num_tokens + 16 * 8) * 2**20, "a page of 8 tokens for each of 16 slots"
    if free_gib is not None and not kv_cache_mb and num_whole > 1:
        left = free_gib - reserved_gib - (room.num_bytes + folder.running_bytes + PROCESS_BYTES) / 2**30
        assert left > 1, "a margin stays"


async def test_seven_billion_parameters_have_room_for_one_long_question_and_none_waits_inside(
    make_room: MakeRoom,
) -> None:
    """4,096 tokens of KV, as much as 4 GiB hold of Llama 2 7B, and prompts of 3,000."""
    room = make_room(4096, EngineOptions(max_concurrent=8, context_tokens=4096))
    params = SamplingParams(temperature=1.0, max_new_tokens=512)
    prompts = [Prompt(tuple(3 + (seed + index) % 60 for index in range(3000))) for seed in range(4)]
    async with room.engine as engine:
        await engine.start()
        for prompt in prompts:
            needed = engine.tokens_needed(prompt, params)
            assert needed == 3512
            assert engine.load.has_room(needed)
            generation = engine.generate(prompt, params)
            assert not engine.load.has_room(needed)
            assert engine.load.has_room(engine.tokens_needed(Prompt((5, 6)), params)), "a short one"
            await anext(generation)
            generation.cancel()
            await read(generation)
    assert (room.num_placed, room.most_held) == (4, 3512)


async def test_all_that_is_taken_is_in_the_next_step(make_room: MakeRoom) -> None:
    room = make_room(8 * 256, EngineOptions(max_concurrent=8, context_tokens=256))
    params = SamplingParams(temperature=1.0, max_new_tokens=254, seed=3)
    prompts = [Prompt((first, second)) for first in range(5, 25) for second in range(5, 25)]
    long = [prompt for prompt in prompts if len(run_alone(prompt.ids, params)) > 40][:8]
    async with room.engine as engine:
        await engine.start()
        room.may_step.clear()
        generations = [engine.generate(prompt, params) for prompt in long]
        with pytest.raises(NoRoomError):
            engine.generate(long[0], params)
        room.may_step.set()
        await asyncio.gather(*map(read, generations))
    assert 8 in room.num_together[:2], "those that came during the first step are in the second one"


async def test_after_a_fault_there_is_as_much_room_as_the_new_model_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = Room(tmp_path, 2048, EngineOptions(max_concurrent=4, context_tokens=256), paged=True)
    async with room.engine as engine:
        await engine.start()
        assert engine.load.max_kv_tokens == 2048
        room.runner._load = lambda: HistoryBlocks(1 + 512 // PAGE_TOKENS, PAGE_TOKENS, 4)
        room.strikes = True
        with pytest.raises(GenerationFailedError):
            await read(engine.generate(Prompt((5, 6)), ENDLESS))
        await wait_until(lambda: engine.health is Health.READY)
        assert engine.load.max_kv_tokens == 512
        assert (await ask(engine, Prompt((5, 6)), ENDLESS)).usage.num_new_tokens > 0
