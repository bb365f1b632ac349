"""System prompts that have a name: Meta's safety guidance, and none. How another text joins them. Pure."""

from __future__ import annotations

META_SYSTEM_PROMPT = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being "
    "safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or "
    "illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering "
    "something not correct. If you don't know the answer to a question, please don't share false information."
)
"""The default system prompt of meta-llama's chat example, July 2023, to the letter."""

PRESETS = {"safe": META_SYSTEM_PROMPT, "none": ""}
"""The texts that have a name."""


def preset_name(text: str) -> str | None:
    """Return the name of the preset that is `text`, None for a text of somebody's own."""
    return next((name for name, preset in PRESETS.items() if preset == text.strip()), None)


def join(guidance: str, text: str) -> str:
    """Return `guidance` followed by `text`; what is empty or stands at the beginning already is left out."""
    if not guidance or text.startswith(guidance):
        return text
    return f"{guidance}\n\n{text}" if text.strip() else guidance
