"""How fast this machine is: its memory, a model's shape in each precision, a converted model as it runs."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from engine.advising.advice import MEASURED_CONTEXT, Load, Speed
from engine.convert.converter import convert
from engine.convert.source import SyntheticSource
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.footprint import step_bytes
from engine.describing.manifest import load_manifest
from engine.engine import Engine, EngineOptions
from engine.errors import GenerationFailedError
from engine.opening import open_folder
from engine.types import Prompt, SamplingParams, Usage

_BANDWIDTH_BYTES = 256 * 2**20
_MOST_WEIGHTS = 150_000_000
"""Of the part of a model that is measured: enough to be out of every cache."""
_MOST_VOCABULARY = 8192
_PREFILL_TOKENS = 256
_NUM_REPEATS = 5
_NEW_TOKENS = 64


def memory_bandwidth(num_threads: int) -> float:
    """Return the bytes a second that `num_threads` read from memory together. Takes about a second."""
    parts = np.array_split(np.ones(_BANDWIDTH_BYTES, np.int8), num_threads)
    with ThreadPoolExecutor(num_threads) as pool:
        return _BANDWIDTH_BYTES / min(_time(lambda: list(pool.map(np.max, parts))) for _ in range(8))


def measured_layers(config: DecoderConfig) -> int:
    """Return how many of a model's layers `measure_shape` runs."""
    two, one = (config.shortened(n).num_parameters for n in (2, 1))
    return min(config.num_layers, max(1, _MOST_WEIGHTS // (two - one)))


def measure_shape(config: DecoderConfig, precision: Precision, *, num_threads: int, load: Load) -> Speed:
    """Run some layers of these dimensions, with random weights, and return what the whole model would do.

    Takes some seconds and up to 2 GB of the folder for temporary files. Raises `ModelResourceError`.
    """
    num_tokens = min(MEASURED_CONTEXT, load.num_tokens, config.context_length - 1)
    part = dataclasses.replace(
        config.shortened(measured_layers(config)),
        vocab_size=min(config.vocab_size, _MOST_VOCABULARY),
        context_length=max(num_tokens, _PREFILL_TOKENS) + 1,
    )
    with tempfile.TemporaryDirectory(prefix="llamacord-measure-") as scratch:
        folder = Path(scratch) / "model"
        convert(SyntheticSource(part), folder, precision)
        options = ModelOptions(num_threads, load.num_conversations, part.context_length)
        model = CpuModel(folder, load_manifest(folder), options)
        prefill_s = _repeat(lambda: model.prefill(0, [1] * _PREFILL_TOKENS, 0))
        single_s = _repeat(lambda: model.decode(0, [1], [num_tokens - 1]))
        lengths = [num_tokens - 1] * load.num_conversations
        together_s = _repeat(lambda: model.decode(0, [1] * load.num_conversations, lengths))

    def whole(num_conversations: int) -> float:
        """Return by what a step of the whole model takes longer: it reads so many times the bytes."""
        held = {"num_tokens": num_tokens, "num_conversations": num_conversations}
        return step_bytes(config, precision, **held) / step_bytes(part, precision, **held)

    return Speed(
        single=1 / (single_s * whole(1)),
        together=load.num_conversations / (together_s * whole(load.num_conversations)),
        prefill=_PREFILL_TOKENS / (prefill_s * config.num_layers / part.num_layers),
    )


async def measure_model(folder: Path, *, num_threads: int, load: Load) -> Speed:
    """Run a converted model through the engine, sampling and detokenizing included, and return its speed.

    Raises `ModelError`, or `GenerationFailedError` where no answer came out.
    """
    engine_options = EngineOptions(
        num_threads=num_threads, max_concurrent=load.num_conversations, context_tokens=load.num_tokens
    )
    vocab_size = open_folder(folder).vocab_size
    async with await Engine.open(folder, engine_options) as engine:
        longest = max(2, min(MEASURED_CONTEXT, engine.info.context_length - _NEW_TOKENS - 1))
        await _answer(engine, vocab_size, seed=0, num_tokens=16)
        alone = await _answer(engine, vocab_size, seed=1, num_tokens=longest)
        start = time.perf_counter()
        seeds = range(2, 2 + load.num_conversations)
        usages = await asyncio.gather(
            *(_answer(engine, vocab_size, seed=seed, num_tokens=16) for seed in seeds)
        )
        together_s = time.perf_counter() - start
    decode_s = alone.duration_s - alone.time_to_first_token_s
    return Speed(
        single=(alone.num_new_tokens - 1) / decode_s,
        together=sum(usage.num_new_tokens for usage in usages) / together_s,
        prefill=longest / alone.time_to_first_token_s,
    )


async def _answer(engine: Engine, vocab_size: int, *, seed: int, num_tokens: int) -> Usage:
    """Ask for the continuation of ids that share no beginning with those of another seed."""
    ids = np.random.default_rng(seed).integers(vocab_size // 2, vocab_size, num_tokens)
    params = SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=_NEW_TOKENS, seed=seed)
    generation = engine.generate(Prompt(tuple(int(token) for token in ids)), params)
    async for _ in generation:
        pass
    if generation.completion is None or generation.completion.usage.num_new_tokens < 2:
        raise GenerationFailedError("The model ended its answer at once, so that nothing could be measured.")
    return generation.completion.usage


def _repeat(act: Callable[[], object]) -> float:
    """Return the seconds that `act` usually takes, once warm."""
    act()
    return median(_time(act) for _ in range(_NUM_REPEATS))


def _time(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
