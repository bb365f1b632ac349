"""The part of `check` that looks at how the model will be used: what it is told first."""

from __future__ import annotations

from bot.app import default_precision, engine_options
from bot.config import Settings
from bot.finding import Finding
from engine.default_model import default_model_folder
from engine.engine import context_tokens
from engine.errors import ModelError
from engine.guidance import preset_name
from engine.manifest import Manifest
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
