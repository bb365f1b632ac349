"""Whether a model is to think first, as clients of OpenAI, vLLM and llama.cpp ask for it. Pure."""

from __future__ import annotations

from engine.serving.fields import Fields
from engine.types import ModelInfo

_SWITCHES = ("enable_thinking", "thinking")
"""What templates call it."""
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_FORMATS = ("auto", "deepseek", "none")


def read_thinking(fields: Fields, info: ModelInfo) -> tuple[bool | None, bool]:
    """Return whether it is to think, None for its own way, and whether marks stay in what it says.

    Of `reasoning_effort`, `none` alone can be followed: no model here knows of more or less. What a model
    cannot do is refused, not ignored. Raises `ApiError`.
    """
    wanted: dict[str, bool] = {}
    options = fields.object("chat_template_kwargs")
    for name in _SWITCHES:
        if options.value(name) is not None:
            wanted[options.name(name)] = options.flag(name)
    options.refuse_others()
    effort = _one_of(fields, "reasoning_effort", _EFFORTS)
    if effort == "none":
        wanted["reasoning_effort"] = False
    if len(set(wanted.values())) > 1:
        fields.refuse(list(wanted)[-1], f"contradicts {next(iter(wanted))}.")
    keeps_marks = _one_of(fields, "reasoning_format", _FORMATS) == "none"
    if not wanted:
        return None, keeps_marks
    name, thinking = next(iter(wanted.items()))
    _check_possible(fields, name, info, thinking=thinking)
    return thinking, keeps_marks


def _check_possible(fields: Fields, name: str, info: ModelInfo, *, thinking: bool) -> None:
    if info.thinks is not None:
        return
    if thinking and info.reasoning is None:
        fields.refuse(name, "must not be true: this model does not think.", "unsupported_value")
    if not thinking and info.reasoning is not None and info.reasoning.is_open:
        value = "none" if name == "reasoning_effort" else "false"
        fields.refuse(name, f"must not be {value}: this model always thinks.", "unsupported_value")


def _one_of(fields: Fields, name: str, values: tuple[str, ...]) -> str | None:
    value = fields.text(name)
    if value is not None and value not in values:
        fields.refuse(name, f"must be one of {', '.join(values)}.", "unsupported_value")
    return value
