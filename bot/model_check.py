"""The part of `check` that looks at how the model will be used: what it is told first."""

from __future__ import annotations

from bot.app import engine_options
from bot.config import Settings
from bot.finding import Finding
from engine.engine import context_tokens
from engine.errors import ModelError
from engine.guidance import preset_name
from engine.model_folder import ModelFolder
from engine.types import ModelInfo


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
            f"{sentence}, and {allowed} leave room for questions. Shorten SYSTEM_PROMPT, set GUIDANCE=none, "
            "or raise CONTEXT_TOKENS or MAX_HISTORY_TOKENS.",
        )
    return Finding(True, "System prompt", f"{sentence}.")
