"""The parameters a conversation may set: names, ranges, defaults, how they are read and shown. Pure.

Knows nothing of where overrides are stored: they come as a mapping of name to value.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bot.conversation.guidance import Guidance
from bot.errors import ParameterError
from bot.language.phrases import Phrase, phrase
from engine.types import RANGES, Range, SamplingParams

Value = int | float
HISTORY_RANGE = Range(128, 131_072)
"""Tokens of system prompt and history that an answer may take into account."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(?:[.,][0-9]{1,12})?")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number that a conversation may set."""

    name: str
    allowed: Range
    is_whole: bool

    def parse(self, text: str) -> Value:
        """Return the value that `text` stands for. Raises `ParameterError` with what is allowed."""
        written = text.strip()
        if _NUMBER.fullmatch(written) and (not self.is_whole or written.lstrip("+-").isdigit()):
            value = int(written) if self.is_whole else float(written.replace(",", "."))
            if self.accepts(value):
                return value
        low, high = self.format(self.allowed.low), self.format(self.allowed.high)
        key = "settings.not_whole" if self.is_whole else "settings.not_a_number"
        raise ParameterError(phrase(key, name=self.name, low=low, high=high))

    def accepts(self, value: object) -> bool:
        """Tell whether a stored `value` may be used."""
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else (int, float)):
            return False
        return self.allowed.low <= value <= self.allowed.high

    def format(self, value: Value) -> str:
        """Return `value` as people write it."""
        return str(int(value)) if self.is_whole else f"{value:g}"

    @property
    def meaning(self) -> Phrase:
        """What it does, in a few words."""
        return phrase(f"parameters.{self.name}")


PARAMETERS: dict[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter("temperature", RANGES["temperature"], False),
        Parameter("top_p", RANGES["top_p"], False),
        Parameter("top_k", RANGES["top_k"], True),
        Parameter("repetition_penalty", RANGES["repetition_penalty"], False),
        Parameter("max_new_tokens", RANGES["max_new_tokens"], True),
        Parameter("max_history_tokens", HISTORY_RANGE, True),
    )
}
"""What `/settings` offers, in the order shown."""


@dataclass(frozen=True, slots=True)
class ChatParameters:
    """How answers are made: the operator's defaults, or what holds for one conversation.

    `system_prompt` None means the model's own. Raises `InvalidParameterError` for a value out of range.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 40
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    max_new_tokens: int = 512
    max_history_tokens: int = 3072
    system_prompt: str | None = None
    guidance: Guidance = field(default_factory=Guidance)
    """The operator's alone: no conversation overrides it."""

    def __post_init__(self) -> None:
        self.sampling()
        HISTORY_RANGE.check("max_history_tokens", self.max_history_tokens)

    def sampling(self, stop: tuple[str, ...] = ()) -> SamplingParams:
        """Return what the engine is given."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_new_tokens,
            stop=stop,
        )

    def value(self, name: str) -> Value:
        """Return the value of the parameter `name` of `PARAMETERS`."""
        value: Value = getattr(self, name)
        return value

    def prompt_budget(self, context_length: int) -> int:
        """Return how many tokens system prompt and history may take.

        The answer's share of the context is kept free, but never more than half of it: a limit for answers
        that is as long as the context must not leave nothing to answer.
        """
        reserved = min(self.max_new_tokens, context_length // 2)
        return min(self.max_history_tokens, context_length - reserved)


def find_parameter(name: str) -> Parameter:
    """Return the parameter called `name`. Raises `ParameterError` naming those there are."""
    parameter = PARAMETERS.get(name.strip().lower())
    if parameter is None:
        raise ParameterError(phrase("settings.unknown", names=", ".join(PARAMETERS)))
    return parameter


def apply_overrides(defaults: ChatParameters, overrides: Mapping[str, object]) -> ChatParameters:
    """Return `defaults` with a conversation's `overrides`; what is unknown or out of range is left out."""
    fitting = {
        name: value
        for name, value in overrides.items()
        if (name in PARAMETERS and PARAMETERS[name].accepts(value))
        or (name == "system_prompt" and isinstance(value, str))
    }
    changed: ChatParameters = dataclasses.replace(defaults, **fitting)  # type: ignore[arg-type]
    return changed


def describe(defaults: ChatParameters, overrides: Mapping[str, object]) -> list[Phrase]:
    """Return one line a parameter: its value here, its default, its range, its meaning."""
    current = apply_overrides(defaults, overrides)
    lines = []
    for name, parameter in PARAMETERS.items():
        value, default = current.value(name), defaults.value(name)
        lines.append(
            phrase(
                "settings.line",
                name=name,
                value=parameter.format(value),
                origin=phrase("settings.is_default")
                if value == default
                else phrase("settings.default_is", value=parameter.format(default)),
                low=parameter.format(parameter.allowed.low),
                high=parameter.format(parameter.allowed.high),
                meaning=parameter.meaning,
            )
        )
    return lines
