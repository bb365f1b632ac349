"""The part of `check` that looks at how the model will run: processor, memory, precision, system prompt."""

from __future__ import annotations

from bot.app import default_precision, engine_options
from bot.config import Settings
from bot.finding import Finding
from engine import machine
from engine.advice import Load, advise
from engine.architecture import Precision
from engine.default_model import default_model_folder
from engine.engine import context_tokens, max_kv_tokens
from engine.errors import ModelError
from engine.footprint import PROCESS_BYTES, running_weight_bytes
from engine.guidance import preset_name
from engine.manifest import Manifest
from engine.processor import read_processor
from engine.text_size import size
from engine.tokenizer import load_tokenizer
from engine.types import ModelInfo


def check_system_prompt(settings: Settings, manifest: Manifest) -> Finding:
    """Say what the model is told first, and whether that leaves room for questions."""
    folder = settings.model or default_model_folder(settings.cache, default_precision(settings))
    context = context_tokens(manifest, engine_options(settings))
    chat = settings.chat
    info = ModelInfo("", "", "", manifest.chat.format, context, manifest.chat.default_system_prompt)
    text = chat.guidance.system_prompt(chat.system_prompt, info)
    guidance = chat.guidance.text_for(manifest.chat.format)
    preset = (preset_name(guidance) or "none") if text.startswith(guidance) else "none"
    try:
        num_tokens = len(load_tokenizer(folder, manifest.tokenizer).encode(text))
    except ModelError as error:
        return Finding(False, "System prompt", str(error))
    allowed = chat.prompt_budget(context) // 2
    sentence = f"guidance {preset}; the system prompt takes {num_tokens} of {context} tokens"
    if num_tokens > allowed:
        return Finding(
            False,
            "System prompt",
            f"{sentence}, and {allowed} leave room for questions. Shorten SYSTEM_PROMPT, set GUIDANCE=none, "
            "or raise CONTEXT_TOKENS or MAX_HISTORY_TOKENS.",
        )
    return Finding(True, "System prompt", f"{sentence}.")


def check_provider(settings: Settings) -> Finding:
    """Say what computes, and whether there are too many threads for it."""
    num_threads = settings.threads or machine.num_physical_cores()
    num_processors = machine.num_processors()
    if num_threads > num_processors:
        return Finding(
            False,
            "Provider",
            f"THREADS is {num_threads}, but there are {num_processors} processors. Set 0 or less.",
        )
    named = read_processor().describe()
    return Finding(True, "Provider", f"the CPU, with {num_threads} of {num_processors} processors; {named}.")


def check_memory(settings: Settings, manifest: Manifest) -> Finding:
    """Compare what the model needs with what is free."""
    needed, free = memory_needed(settings, manifest), machine.free_memory_bytes()
    sentence = f"the model and {settings.max_concurrent} answers at once need up to {size(needed)}"
    if free is None:
        return Finding(True, "Memory", f"{sentence}; how much is free cannot be told here.")
    if free < needed:
        return Finding(
            False,
            "Memory",
            f"{sentence}, and {size(free)} are free. Close other programs, lower MAX_CONCURRENT or "
            "CONTEXT_TOKENS, or choose a smaller model.",
        )
    return Finding(True, "Memory", f"{sentence}; {size(free)} are free.")


def memory_needed(settings: Settings, manifest: Manifest) -> int:
    """Estimate the bytes of weights, KV and process."""
    on_disk = sum(entry.size for entry in manifest.files.values())
    weights = max(on_disk, running_weight_bytes(manifest.decoder, manifest.precision))
    chosen = engine_options(settings)
    in_use = chosen.max_concurrent * context_tokens(manifest, chosen)
    num_tokens = min(in_use, max_kv_tokens(manifest, chosen))
    return weights + num_tokens * manifest.decoder.kv_bytes_per_token() + PROCESS_BYTES


def check_precision(settings: Settings, manifest: Manifest) -> Finding:
    """Say which precision suits this machine. Another one that works is no problem."""
    load = Load(settings.max_concurrent, context_tokens(manifest, engine_options(settings)))
    advice = advise(
        manifest.decoder, machine.resources(), load, {}, has_4_bits=manifest.precision is Precision.INT4
    )
    if advice.chosen is None:
        return Finding(False, "Precision", advice.sentences[0])
    if advice.chosen.precision is manifest.precision:
        return Finding(True, "Precision", f"{manifest.precision} suits this machine.")
    other = advice.chosen
    return Finding(
        True,
        "Precision",
        f"{manifest.precision}; {other.precision} suits this machine better, with {size(other.memory.total)} "
        "of memory. `python -m engine inspect` with --measure tells how fast each is.",
    )
