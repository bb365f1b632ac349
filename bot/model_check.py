"""The part of `check` that looks at how the model will run: processor, memory, precision, system prompt."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from bot.config import Settings
from bot.models import beside, gpu_bytes, gpu_for, model_bytes, runs_on_gpu
from engine import kernels
from engine.advising.advice import Blocks, Load, advise
from engine.advising.gpu_advice import advise_gpu
from engine.advising.measuring import measure_model
from engine.configuring.models import engine_options
from engine.describing.architecture import Precision
from engine.describing.footprint import PROCESS_BYTES, room_sentence, size
from engine.engine import EngineOptions, context_tokens, draft_bytes, kv_room, num_answers
from engine.errors import EngineError, ModelError, ModelResourceError
from engine.gpu.loading import block_size, num_blocks
from engine.machine import machine
from engine.machine.cuda_device import CudaDevice, NoCudaError, find_device, free_bytes, has_driver
from engine.machine.machine import read_processor
from engine.opening import ConvertedFolder, open_draft, open_folder
from engine.runtime.model_folder import ModelFolder, RunnerSize
from engine.types import ModelInfo, preset_name

_LARGEST_DRAFT = 0.5
"""Of the memory of the model that it drafts for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    is_good: bool
    subject: str
    sentence: str


def check_system_prompt(settings: Settings, model: ModelFolder) -> Finding:
    """Say what the model is told first, and whether that leaves room for questions."""
    context = context_tokens(model, engine_options(settings))
    chat = settings.chat
    info = ModelInfo("", "", "", model.chat.format, context, model.chat.default_system_prompt)
    text = chat.guidance.system_prompt(chat.system_prompt, info)
    guidance = chat.guidance.text_for(model.chat.format)
    preset = (preset_name(guidance) or "none") if text.startswith(guidance) else "none"
    try:
        num_tokens = len(model.load_tokenizer().encode(text))
    except ModelError as error:
        return Finding(False, "System prompt", str(error))
    allowed = chat.prompt_budget(context) // 2
    sentence = f"guidance {preset}; the system prompt takes {num_tokens} of {context} tokens"
    if num_tokens > allowed:
        return Finding(
            False,
            "System prompt",
            f"{sentence}; at most {allowed} leave room for questions. Shorten SYSTEM_PROMPT, set "
            "GUIDANCE=none, or raise CONTEXT_TOKENS or MAX_HISTORY_TOKENS.",
        )
    return Finding(True, "System prompt", f"{sentence}.")


def check_provider(settings: Settings, model: ModelFolder | None) -> Finding:
    """Say what computes, and whether there are too many threads for it."""
    num_threads = settings.threads or machine.num_physical_cores()
    num_processors = machine.num_processors()
    if num_threads > num_processors:
        return Finding(
            False,
            "Provider",
            f"THREADS is {num_threads}, but there are {num_processors} processors. Set it lower, or to 0.",
        )
    cpu = (
        f"the CPU, with {num_threads} of {num_processors} processors; {read_processor().describe()}. "
        f"Products: {kernels.describe()}."
    )
    if settings.provider == "cpu":
        return Finding(True, "Provider", cpu)
    try:
        device = find_device()
    except NoCudaError as error:
        if settings.provider == "cuda":
            return Finding(False, "Provider", f"PROVIDER is cuda, but {error}.")
        return Finding(True, "Provider", f"{cpu} The GPU is not used: {error}." if has_driver() else cpu)
    if model is not None and not runs_on_gpu(model):
        reason = "this model only runs on the CPU: convert it again, to fp16, int8 or int4"
        if settings.provider == "cuda":
            return Finding(False, "Provider", f"PROVIDER is cuda, but {reason}.")
        return Finding(True, "Provider", f"{cpu} There is a {device.name}, but {reason}.")
    return Finding(True, "Provider", f"{device.describe()}.")


def check_memory(settings: Settings, model: ModelFolder, moderation: ModelFolder | None = None) -> Finding:
    """Compare what the models need with what is free; `moderation` is the moderation model."""
    if isinstance(model, ConvertedFolder) and gpu_for(settings.provider, model) is not None:
        return _check_gpu_memory(settings, model)
    options, free = beside(engine_options(settings), moderation, is_loaded=False), machine.free_memory_bytes()
    needed = model_bytes(options, model) + options.reserved_bytes + PROCESS_BYTES
    models = ["the model"] + ["the draft model"] * bool(draft_bytes(model, options))
    models += [] if moderation is None else ["the moderation model"]
    sentence = f"{', '.join(models)} and the conversations need up to {size(needed)}"
    if free is not None and free < needed:
        return Finding(
            False,
            "Memory",
            f"{sentence}, but only {size(free)} are free. Close other programs, lower CONTEXT_TOKENS or "
            "KV_CACHE_MB, or choose a smaller model.",
        )
    there = "how much is free is unknown here" if free is None else f"{size(free)} are free"
    return Finding(
        True, "Memory", f"{sentence}; {there}. {_room(kv_room(model, options).num_tokens, model, options)}"
    )


def _room(num_kv_tokens: int, model: ModelFolder, options: EngineOptions) -> str:
    """Say for how many answers there is room."""
    return room_sentence(num_kv_tokens, context_tokens(model, options), num_answers(model, options))


def _check_gpu_memory(settings: Settings, model: ConvertedFolder) -> Finding:
    """Compare what the model needs beside its other answers with what is free on the GPU."""
    options, config = engine_options(settings), model.manifest.decoder
    context = context_tokens(model, options)
    needed, free = gpu_bytes(model, context), free_bytes()
    sentence = f"the model and one answer of {context} tokens need {size(needed)} of the GPU's memory"
    limits = RunnerSize(0, options.max_concurrent, context, 0, kv_cache_mb=options.kv_cache_mb)
    try:
        num_tokens = (num_blocks(config, limits, free - gpu_bytes(model, 0)) - 1) * block_size(config)
    except ModelResourceError:
        return Finding(
            False,
            "Memory",
            f"{sentence}, but only {size(free)} are free: it would run on the CPU. Close other programs, "
            "lower CONTEXT_TOKENS, or convert it to fewer bits.",
        )
    return Finding(True, "Memory", f"{sentence}; {size(free)} are free. {_room(num_tokens, model, options)}")


def check_draft_model(settings: Settings, model: ModelFolder, folder: Path) -> Finding:
    """Read every byte of the small model that drafts, and see whether it can draft for `model`."""
    try:
        draft = open_draft(folder, model)
        draft.verify()
    except ModelError as error:
        return Finding(False, "Drafts", str(error))
    sentence = f"{draft.name} ({draft.precision}) in {folder} is complete"
    if gpu_for(settings.provider, model) is not None:
        return Finding(True, "Drafts", f"{sentence}, but not used: the model runs on a GPU.")
    share = draft.running_bytes / model.running_bytes
    if share > _LARGEST_DRAFT:
        return Finding(
            False,
            "Drafts",
            f"{sentence}, but takes {share:.0%} of the memory of {model.name}: only a model that is several "
            "times smaller makes drafts faster. Change DRAFT_MODEL.",
        )
    return Finding(
        True,
        "Drafts",
        f"{sentence}. It drafts while a single answer without a seed is written, and pauses when that is no "
        f"faster; {size(draft_bytes(model, engine_options(settings)))} of memory.",
    )


def check_precision(settings: Settings, model: ModelFolder) -> Finding:
    """Say which precision suits this machine. Another one that works is no problem."""
    if not isinstance(model, ConvertedFolder):
        return Finding(True, "Precision", f"{model.precision}, as it was released.")
    load = Load(settings.max_concurrent, context_tokens(model, engine_options(settings)))
    device = gpu_for(settings.provider, model)
    if device is not None:
        return _check_gpu_precision(model, device, load)
    blocks = Blocks(has_4_bits=model.manifest.precision is Precision.INT4)
    advice = advise(model.manifest.decoder, machine.resources(), load, {}, blocks)
    best = advice.chosen
    if best is None:
        return Finding(False, "Precision", advice.sentences[0])
    if best.precision is model.manifest.precision:
        return Finding(True, "Precision", f"{best.precision} suits this machine.")
    return Finding(
        True,
        "Precision",
        f"{model.precision}; {best.precision} suits this machine better, with {size(best.memory.total)} of "
        f"memory. `python -m engine inspect {model.folder} --measure` measures how fast each is.",
    )


def _check_gpu_precision(model: ConvertedFolder, device: CudaDevice, load: Load) -> Finding:
    """Say which precision suits the GPU."""
    has_4_bits = model.manifest.precision is Precision.INT4
    advice = advise_gpu(model.manifest.decoder, device, device.total_bytes, load, has_4_bits=has_4_bits)
    sentence = advice.sentences[0]
    return Finding(advice.chosen is not None, "Precision", f"{model.precision}; {sentence}")


def check_speed(settings: Settings, folder: Path) -> Finding:
    """Have the model answer, alone and as many at once as are set, and say how fast that is."""
    options = engine_options(settings)
    num_threads = settings.threads or machine.num_physical_cores()
    try:
        model = open_folder(folder)
        load = Load(num_answers(model, options), context_tokens(model, options))
        speed = asyncio.run(measure_model(folder, num_threads=num_threads, load=load))
    except EngineError as error:
        return Finding(False, "Speed", str(error))
    return Finding(
        True,
        "Speed",
        f"{speed.single:.3g} tokens/s for one answer, {speed.together:.3g} in total for "
        f"{load.num_conversations} at once; prompts are read at {speed.prefill:.3g}.",
    )
