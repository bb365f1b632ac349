"""The values that cross the engine's boundary: what is asked of it and what it answers.

Frozen, validated on construction, free of any I/O. The bot's side depends on `TextEngine` and
`Generation` only, so that tests can put a scripted engine in their place.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from engine.errors import InvalidParameterError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a dialog. A dialog is an optional system message, then user and assistant in turn."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Range:
    """The values a sampling parameter may take, both ends included."""

    low: float
    high: float

    def check(self, name: str, value: float) -> None:
        """Raise `InvalidParameterError` unless `value` is a finite number in the range."""
        if not math.isfinite(value) or not self.low <= value <= self.high:
            bounds = f"between {self.low:g} and {self.high:g}"
            raise InvalidParameterError(f"{name} must be {bounds}, not {value:g}.")


RANGES: dict[str, Range] = {
    "temperature": Range(0.0, 2.0),
    "top_p": Range(0.01, 1.0),
    "top_k": Range(0, 1000),
    "min_p": Range(0.0, 1.0),
    "repetition_penalty": Range(0.5, 2.0),
    "max_new_tokens": Range(1, 32768),
    "seed": Range(0, 2**63 - 1),
}
"""Ranges of the fields of `SamplingParams`, by name."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next tokens are chosen.

    temperature: 0 is greedy. top_p: nucleus mass, 1 is off. top_k: 0 is off. min_p: least probability as
    a share of the most likely token's, 0 is off. repetition_penalty: divides positive and multiplies
    negative logits of tokens already seen in prompt or answer, 1 is off (Keskar et al., CTRL, 2019).
    seed: None draws one at random. stop: texts that end the answer and are not part of it.
    Raises `InvalidParameterError` for a value outside `RANGES`.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 40
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    max_new_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if value is not None:
                allowed.check(name, value)
        if not all(self.stop):
            raise InvalidParameterError("A stop string must not be empty.")

    @property
    def is_reproducible(self) -> bool:
        """Whether the same prompt must give the same answer again: a seed is given, or chance has no part."""
        return self.seed is not None or self.temperature == 0.0


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """The model ended its turn."""
    STOP_TEXT = "stop_text"
    """A stop string came, which is not part of the answer."""
    LENGTH = "length"
    """The token limit, or the end of the model's context, was reached."""
    CANCELLED = "cancelled"
    """Somebody stopped it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request took. Times in seconds from the moment it was submitted."""

    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt tokens whose KV was still there from an earlier request."""
    num_new_tokens: int
    time_to_first_token_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids ready for the model. `num_dropped` counts the oldest messages that did not fit.

    is_continued: the ids end inside the answer, so that what comes goes on with it.
    """

    ids: tuple[int, ...]
    num_dropped: int = 0
    is_continued: bool = False


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a model writes around what it thinks. `is_open`: its prompt has written the first mark already."""

    opening: str
    closing: str
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded. `chat_format` is None for a base model, which has none.

    reasoning: the marks that its folder names. ends_turns: whether its chat format has a token for the end of
    an answer; without one, a model may go on with the next person's turn.
    """

    name: str
    precision: str
    provider: str
    chat_format: str | None
    context_length: int
    default_system_prompt: str
    reasoning: Reasoning | None = None
    ends_turns: bool = True


class Health(StrEnum):
    """READY answers; RECOVERING is reloading after a fault; UNHEALTHY needs the operator."""

    READY = "ready"
    RECOVERING = "recovering"
    UNHEALTHY = "unhealthy"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How much the engine has to do and to hold.

    num_kv_tokens: tokens whose KV is held, for running answers and for the next turns of conversations.
    """

    num_requests: int
    num_kv_tokens: int
    max_kv_tokens: int


class Generation(Protocol):
    """One running answer: iterate for its text, piece by piece.

    A piece is never empty and never ends inside a character. Iteration raises an `EngineError` when the
    request failed. After the end `completion` is set; leaving the iteration early does not cancel.
    """

    def __aiter__(self) -> AsyncIterator[str]: ...

    async def __anext__(self) -> str: ...

    def cancel(self) -> None:
        """End the request within one step; iteration then stops with reason CANCELLED. Idempotent."""

    @property
    def completion(self) -> Completion | None: ...


class TextEngine(Protocol):
    """The engine as the bot sees it."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def health(self) -> Health: ...

    @property
    def load(self) -> EngineLoad: ...

    def fit_prompt(
        self, dialog: Sequence[ChatMessage], max_prompt_tokens: int, *, answer_so_far: str = ""
    ) -> Prompt:
        """Encode `dialog`, dropping the oldest whole turns until it fits; the system message always stays.

        `answer_so_far` is the beginning of the answer, with which the model is to go on.
        Takes milliseconds of pure computation, in proportion to what is kept: call it in a thread. Raises
        `UnsafePromptError` for control tags in a message, `PromptTooLongError` when system message and last
        turn alone do not fit, and `NoChatFormatError` for a base model.
        """

    def is_safe(self, text: str) -> bool:
        """Tell whether `fit_prompt` takes `text` as a message: no control tags are in it."""

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` takes, without the chat format around it."""

    def generate(self, prompt: Prompt, params: SamplingParams) -> Generation:
        """Queue a request and return at once. Call on the event loop.

        Raises `QueueFullError`, `PromptTooLongError` or `EngineUnavailableError`.
        """

    def drop_idle_cache(self) -> None:
        """Forget what is kept of former prompts and answers to make next turns faster, and return at once.

        What is in use is forgotten as soon as its request ends. For when texts were deleted.
        """
