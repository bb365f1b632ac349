"""How answers are made: the parameters a conversation may set, and the guidance of the operator. Pure.

Names, ranges and defaults, how they are read and shown. Knows nothing of where overrides are stored: they
come as a mapping of name to value.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bot.errors import ParameterError
from bot.language.phrases import Phrase, phrase
from engine.types import META_SYSTEM_PROMPT, PRESETS, RANGES, ModelInfo, Range, SamplingParams

Value = int | float
HISTORY_RANGE = Range(128, 131_072)
"""Tokens of system prompt and history that an answer may take into account."""
SEED_RANGE = Range(0, 999_999_999_999)
"""0 draws another one for each answer."""
MAX_SYSTEM_PROMPT_CHARS = 1500
"""So that it can be shown in one Discord message."""
THINKING = "thinking"
"""Whether a model thinks before it answers, for those that leave one the choice."""
_SWITCHED = {"on": "1", "off": "0"}
_LIMIT = re.compile(
    r"(?P<name>[a-z_]+)\s*[=:]\s*(?P<low>-?[0-9.]+?)\s*\.\.\s*(?P<high>-?[0-9]+(?:\.[0-9]+)?)"
)
_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(?:[.,][0-9]{1,12})?")
_GUIDED_FORMAT = "llama-2"
"""Models of this chat format were trained with Meta's guidance; others mostly pay for it in context."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number that a conversation may set."""

    name: str
    allowed: Range
    is_whole: bool
    is_switch: bool = False
    """On is 1, off 0."""

    def parse(self, text: str) -> Value:
        """Return the value that `text` stands for. Raises `ParameterError` with what is allowed."""
        written = text.strip()
        if self.is_switch:
            written = _SWITCHED.get(written.lower(), written)
        if _NUMBER.fullmatch(written) and (not self.is_whole or written.lstrip("+-").isdigit()):
            value = int(written) if self.is_whole else float(written.replace(",", "."))
            if self.accepts(value):
                return value
        low, high = self.format(self.allowed.low), self.format(self.allowed.high)
        if self.is_switch:
            raise ParameterError(phrase("settings.not_a_switch", name=self.name, values=self.choices))
        key = "settings.not_whole" if self.is_whole else "settings.not_a_number"
        raise ParameterError(phrase(key, name=self.name, low=low, high=high))

    def accepts(self, value: object) -> bool:
        """Tell whether a stored `value` may be used."""
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else (int, float)):
            return False
        return self.allowed.low <= value <= self.allowed.high

    def format(self, value: Value) -> str:
        """Return `value` as people write it."""
        if self.is_switch:
            return "on" if value else "off"
        return str(int(value)) if self.is_whole else f"{value:g}"

    def within(self, limits: Mapping[str, Range]) -> Parameter:
        """Return this parameter with no more than the operator's `limits` allow."""
        limit = limits.get(self.name, self.allowed)
        low, high = max(limit.low, self.allowed.low), min(limit.high, self.allowed.high)
        return dataclasses.replace(self, allowed=Range(low, high))

    def nearest(self, value: Value) -> Value:
        """Return the allowed value that is nearest to `value`."""
        bounded = min(max(value, self.allowed.low), self.allowed.high)
        return int(bounded) if self.is_whole else bounded

    @property
    def choices(self) -> str:
        """What a switch can be."""
        allowed = self.allowed
        return " / ".join(
            f"`{self.format(value)}`" for value in (1, 0) if allowed.low <= value <= allowed.high
        )

    @property
    def meaning(self) -> Phrase:
        """What it does, in a few words."""
        return phrase(f"parameters.{self.name}")


def _declared() -> Iterator[Parameter]:
    defaults = SamplingParams()
    for name, allowed in RANGES.items():
        if name != "seed":
            yield Parameter(name, allowed, isinstance(getattr(defaults, name), int))
    yield Parameter("max_history_tokens", HISTORY_RANGE, True)
    yield Parameter("seed", SEED_RANGE, True)
    yield Parameter(THINKING, Range(0, 1), True, is_switch=True)


PARAMETERS: dict[str, Parameter] = {parameter.name: parameter for parameter in _declared()}
"""What `/settings` offers, in the order shown: the engine's, and those that are the bot's own matter."""
ANSWER_PRESETS: dict[str, dict[str, Value]] = {
    "precise": {"temperature": 0.2, "top_p": 0.8, "top_k": 20, "min_p": 0.05},
    "balanced": {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.0},
    "creative": {"temperature": 1.1, "top_p": 0.97, "top_k": 100, "min_p": 0.03},
}
"""Several parameters under one name."""


class GuidanceChoice(StrEnum):
    """AUTO is SAFE for Llama 2 and NONE for other models."""

    AUTO = "auto"
    SAFE = "safe"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Guidance:
    """The operator's choice. With `is_kept` no other text takes the guidance's place: it only follows it."""

    choice: GuidanceChoice = GuidanceChoice.AUTO
    is_kept: bool = True

    def text_for(self, chat_format: str | None) -> str:
        """Return the guidance for a model of this chat format, or nothing."""
        if self.choice is not GuidanceChoice.AUTO:
            return PRESETS[self.choice]
        return META_SYSTEM_PROMPT if chat_format == _GUIDED_FORMAT else ""

    def system_prompt(self, own: str | None, info: ModelInfo) -> str:
        """Return what the model is told, where `own` is the text in force; None has the model's own stand in.

        The text that a Llama 2 model brings is the guidance itself, which is the operator's to choose.
        """
        guidance = self.text_for(info.chat_format)
        if own is None:
            brought = info.default_system_prompt
            return join(guidance, "" if brought == META_SYSTEM_PROMPT else brought)
        return join(guidance, own) if self.is_kept else own


def join(guidance: str, text: str) -> str:
    """Return `guidance` followed by `text`; what is empty or stands at the beginning already is left out."""
    if not guidance or text.startswith(guidance):
        return text
    return f"{guidance}\n\n{text}" if text.strip() else guidance


@dataclass(frozen=True, slots=True)
class ChatParameters:
    """How answers are made: the operator's defaults, or what holds for one conversation.

    `system_prompt` None means the model's own. Raises `InvalidParameterError` for a value out of range.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_history_tokens: int = 3072
    thinking: int | None = None
    """1 or 0; None where nobody chose and the model does not leave one the choice."""
    system_prompt: str | None = None
    guidance: Guidance = field(default_factory=Guidance)
    """The operator's alone: no conversation overrides it."""
    limits: Mapping[str, Range] = field(default_factory=dict)
    """The operator's too: what servers and conversations may choose from, by parameter."""
    chosen: frozenset[str] = frozenset()
    """The parameters that the operator set: above what the model's authors advise."""
    advised: frozenset[str] = frozenset()
    """Those whose values are the model's own."""

    def __post_init__(self) -> None:
        HISTORY_RANGE.check("max_history_tokens", self.max_history_tokens)
        SEED_RANGE.check("seed", self.sampling.seed or 0)

    @property
    def thinks(self) -> bool | None:
        """Whether the model is to think before it answers, None for its own way."""
        return None if self.thinking is None else bool(self.thinking)

    def value(self, name: str) -> Value:
        """Return the value of the parameter `name` of `PARAMETERS`."""
        value: Value | None = getattr(self.sampling if name in RANGES else self, name)
        return 0 if value is None else value

    def with_values(self, values: Mapping[str, Any]) -> ChatParameters:
        """Return these with other values of parameters, or another system prompt, by name."""
        sampling = {name: value for name, value in values.items() if name in RANGES}
        if "seed" in sampling:
            sampling["seed"] = sampling["seed"] or None
        own = {name: value for name, value in values.items() if name not in RANGES}
        return dataclasses.replace(self, sampling=dataclasses.replace(self.sampling, **sampling), **own)

    def with_advice(self, advice: Mapping[str, Value]) -> ChatParameters:
        """Return these with what a model's authors advise, as far as the operator chose nothing else."""
        values = {
            name: PARAMETERS[name].within(self.limits).nearest(value)
            for name, value in advice.items()
            if name in PARAMETERS and name not in self.chosen
        }
        return dataclasses.replace(self.with_values(values), advised=frozenset(values))

    def prompt_budget(self, context_length: int) -> int:
        """Return how many tokens system prompt and history may take."""
        return min(self.max_history_tokens, self.prompt_room(context_length))

    def prompt_room(self, context_length: int) -> int:
        """Return how many tokens a prompt may take.

        The answer's share of the context is kept free, but never more than half of it: a limit for answers
        that is as long as the context must not leave nothing to answer.
        """
        return context_length - min(self.sampling.max_new_tokens, context_length // 2)


def find_parameter(name: str) -> Parameter:
    """Return the parameter called `name`. Raises `ParameterError` naming those there are."""
    parameter = PARAMETERS.get(name.strip().lower())
    if parameter is None:
        raise ParameterError(phrase("settings.unknown", names=", ".join(PARAMETERS)))
    return parameter


def written_parameters(values: Iterable[tuple[str, Value]]) -> dict[str, str]:
    """Return parameters as they are stored and as people write them, by name."""
    return {
        name: PARAMETERS[name].format(value) if PARAMETERS[name].is_switch else f"{value:.12g}"
        for name, value in values
    }


def read_parameters(text: str) -> dict[str, str]:
    """Return what people wrote, `temperature = 0.5` in each line, by name. Raises `ParameterError`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [re.split(r"\s*[=:]\s*", line, maxsplit=1) for line in lines]
    if any(len(pair) != 2 for pair in pairs):
        raise ParameterError(phrase("settings.bad_lines", names=", ".join(PARAMETERS)))
    return {find_parameter(name).name: written for name, written in pairs}


def read_limits(text: str) -> dict[str, Range]:
    """Return the limits that `text` names, as in `temperature=0..1, max_new_tokens=1..800`.

    Raises `ValueError` saying what is allowed.
    """
    limits = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _LIMIT.fullmatch(part)
        if match is None or match["name"] not in PARAMETERS:
            raise ValueError(f"must be like temperature=0..1, with one of {', '.join(PARAMETERS)}")
        low, high = float(match["low"]), float(match["high"])
        allowed = PARAMETERS[match["name"]].allowed
        if not allowed.low <= low <= high <= allowed.high:
            raise ValueError(f"must stay within {match['name']}={allowed.low:g}..{allowed.high:g}")
        limits[match["name"]] = Range(low, high)
    return limits


def apply_overrides(defaults: ChatParameters, *layers: Mapping[str, object]) -> ChatParameters:
    """Return `defaults` under each of the `layers`, the last one on top.

    What is unknown, out of range or beyond the operator's limits is left out.
    """
    changed = defaults
    for layer in layers:
        changed = changed.with_values(
            {name: value for name, value in layer.items() if _fits(name, value, defaults.limits)}
        )
    return changed


def describe(
    defaults: ChatParameters, server: Mapping[str, object], own: Mapping[str, object]
) -> list[Phrase]:
    """Return one line a parameter: its value here, where that comes from, its range, its meaning."""
    current, below = apply_overrides(defaults, server, own), apply_overrides(defaults, server)
    lines = []
    for name, parameter in PARAMETERS.items():
        if parameter.is_switch and defaults.thinking is None:
            continue
        parameter = parameter.within(defaults.limits)
        if name in own and _fits(name, own[name], defaults.limits):
            origin = phrase("settings.from_here", value=parameter.format(below.value(name)))
        elif name in server and _fits(name, server[name], defaults.limits):
            origin = phrase("settings.from_server", value=parameter.format(defaults.value(name)))
        elif name in defaults.advised:
            origin = phrase("settings.from_model")
        else:
            origin = phrase("settings.is_default")
        lines.append(
            phrase(
                "settings.switch" if parameter.is_switch else "settings.line",
                name=name,
                value=parameter.format(current.value(name)),
                origin=origin,
                low=parameter.format(parameter.allowed.low),
                high=parameter.format(parameter.allowed.high),
                meaning=parameter.meaning,
            )
        )
    return lines


def _fits(name: str, value: object, limits: Mapping[str, Range]) -> bool:
    if name == "system_prompt":
        return isinstance(value, str)
    return name in PARAMETERS and PARAMETERS[name].within(limits).accepts(value)
