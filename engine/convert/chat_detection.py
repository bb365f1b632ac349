"""Tells a model's chat format from the chat template that came with it. Pure."""

from __future__ import annotations

from engine.guidance import META_SYSTEM_PROMPT
from engine.manifest import ChatSpec

_CHATML_START, _CHATML_END = "<|im_start|>", "<|im_end|>"
_BEYOND_CHATML = ("bos_token", "trim", "strip", "split", "raise_exception", "tools", "<think>")
"""A template that speaks of these writes more than the bare format, or other text."""


def detect_chat(template: str) -> ChatSpec:
    """Return the chat format that a Jinja template describes: a known one, or the template itself.

    Without a template the format is None.
    """
    if _CHATML_START in template and not any(word in template for word in _BEYOND_CHATML):
        return ChatSpec("chatml", _chatml_system_prompt(template))
    if "[INST]" in template and "<<SYS>>" in template:
        return llama2_chat()
    return ChatSpec("jinja", template=template) if template.strip() else ChatSpec(None)


def llama2_chat() -> ChatSpec:
    """Return Llama 2's format with Meta's system prompt."""
    return ChatSpec("llama-2", META_SYSTEM_PROMPT)


def _chatml_system_prompt(template: str) -> str:
    """Return the system message that a ChatML template adds by itself, or nothing."""
    for opening in (f"{_CHATML_START}system\\n", f"{_CHATML_START}system\n"):
        if opening in template:
            text = template.split(opening, 1)[1].split(_CHATML_END, 1)[0]
            # What is put together from variables is no fixed text.
            return "" if "{{" in text or "'" in text else text
    return ""
