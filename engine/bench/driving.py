"""Drives the engine as the bot does, through its public API, and takes the time of what comes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np

from engine.bench.figures import Figures, Load, Plan, Stream, load_of, median_first
from engine.describing.manifest import load_manifest
from engine.engine import Engine, EngineOptions
from engine.errors import GenerationFailedError, ModelFormatError
from engine.machine.cuda_device import NoCudaError, free_bytes
from engine.opening import open_folder
from engine.types import Completion, FinishReason, Prompt, SamplingParams, TextEngine

_LONG_PROMPT, _ANSWER, _NEXT_QUESTION = 1500, 32, 50
"""Tokens of a long conversation's first turn and of what its second turn adds."""
_NUM_REPEATS = 3
_FIRST_TEXT_ID = 300
"""Ids below are control tokens and single bytes."""


async def measure_engine(plan: Plan) -> Figures:
    """Load the converted model of the plan, measure it, and close it.

    Raises `ModelError`, or `GenerationFailedError` where too little came out.
    """
    folder, before = Path(plan.folder), _free_bytes()
    config, tokenizer = load_manifest(folder).decoder, open_folder(folder).load_tokenizer()
    if plan.context + plan.tokens > config.context_length:
        raise ModelFormatError(
            f"The model's context has {config.context_length} tokens: lower --context or --tokens."
        )
    options = engine_options(plan, config.context_length)
    started = time.perf_counter()
    async with await Engine.open(folder, options) as engine:
        driver = Driver(engine, config.vocab_size, plan)
        load_s = time.perf_counter() - started
        await driver.ask(driver.prompt(min(64, plan.context)), 8)
        alone = [await driver.ask(driver.prompt(plan.context), 1) for _ in range(_NUM_REPEATS)]
        first_s = median_first(alone)
        loads = tuple([await driver.together(num) for num in plan.conversations if driver.has_room(num)])
        second_s = second_tokens = None
        if engine.info.context_length >= _LONG_PROMPT + 2 * _ANSWER + _NEXT_QUESTION:
            second_s, second_tokens = await driver.second_turn(tokenizer.encode)
        return Figures(
            name=engine.info.name,
            provider=engine.info.provider,
            loads=loads,
            load_s=load_s,
            first_token_s=first_s,
            prefill=plan.context / first_s,
            second_turn_s=second_s,
            second_turn_tokens=second_tokens,
            resident_bytes=resident_bytes(),
            free_before=before,
            free_after=_free_bytes(),
        )


def engine_options(plan: Plan, context_length: int) -> EngineOptions:
    """Return options with room for all conversations at once, as far as memory goes."""
    long = _LONG_PROMPT + 2 * _ANSWER + _NEXT_QUESTION
    return EngineOptions(
        num_threads=plan.threads,
        max_concurrent=max(plan.conversations),
        context_tokens=min(context_length, max(plan.context + plan.tokens, long) + 8),
        speculation=False,
        device=plan.device,
    )


class Driver:
    """Asks one engine for continuations of random prompts."""

    def __init__(self, engine: TextEngine, vocab_size: int, plan: Plan) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._plan = plan
        self._seeds = count(1)

    def prompt(self, num_tokens: int) -> list[int]:
        """Return random text tokens that share no beginning with those of another call."""
        first = min(_FIRST_TEXT_ID, self._vocab_size // 2)
        drawn = np.random.default_rng(next(self._seeds)).integers(first, self._vocab_size, num_tokens)
        return [int(token) for token in drawn]

    async def ask(self, ids: list[int], num_tokens: int) -> Stream:
        """Generate one answer of so many tokens, at most as many seconds as the plan has."""
        return (await self._answer(ids, num_tokens))[0]

    def has_room(self, number: int) -> bool:
        """Tell whether there is memory for so many conversations at once."""
        params = SamplingParams(max_new_tokens=self._plan.tokens)
        each = self._engine.tokens_needed(Prompt((1,) * self._plan.prompt_tokens), params)
        return number == 1 or number * each <= self._engine.load.max_kv_tokens

    async def together(self, number: int) -> Load:
        """Measure so many conversations at once: their first tokens, then all of them answering.

        Raises `GenerationFailedError` where the answers end at once.
        """
        best: Load | None = None
        for _ in range(_NUM_REPEATS):
            prompts = [self.prompt(self._plan.prompt_tokens) for _ in range(number)]
            # What is kept of the prompts after this makes all of them answer at the same time.
            arrived = await asyncio.gather(*(self.ask(ids, 2) for ids in prompts))
            streams = await asyncio.gather(*(self.ask(ids, self._plan.tokens) for ids in prompts))
            found = load_of(streams, median_first(arrived))
            best = found or best
            if best is not None and not best.cut_short:
                return best
        if best is None:
            raise GenerationFailedError(
                "The model ends its answers at once, so that nothing can be measured."
            )
        return best

    async def second_turn(self, encode: Callable[[str], list[int]]) -> tuple[float, int]:
        """Return the seconds to the first token of a second turn and the tokens of it that were computed."""
        seconds, computed = [], []
        for _ in range(_NUM_REPEATS):
            ids = self.prompt(_LONG_PROMPT)
            completion = (await self._answer(ids, _ANSWER))[1]
            ids = [*ids, *encode(completion.text)[:_ANSWER], *self.prompt(_NEXT_QUESTION)]
            usage = (await self._answer(ids, 1))[1].usage
            seconds.append(usage.time_to_first_token_s)
            computed.append(usage.num_computed_tokens)
        return median(seconds), int(median(computed))

    async def _answer(self, ids: list[int], num_tokens: int) -> tuple[Stream, Completion]:
        params = SamplingParams(temperature=self._plan.temperature, max_new_tokens=num_tokens)
        generation = self._engine.generate(Prompt(tuple(ids)), params)
        times: list[float] = []
        async for _ in generation:
            times.append(time.perf_counter())
            if times[-1] - times[0] > self._plan.seconds:
                generation.cancel()
        completion = generation.completion
        if completion is None:
            raise GenerationFailedError("An answer ended without a completion.")
        usage = completion.usage
        early = completion.finish_reason is FinishReason.STOP and usage.num_new_tokens < num_tokens // 2
        return Stream(times, usage.num_new_tokens, usage.time_to_first_token_s, early), completion


def resident_bytes() -> int | None:
    """Return this process's resident memory, None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _free_bytes() -> int | None:
    try:
        return free_bytes()
    except NoCudaError:
        return None
