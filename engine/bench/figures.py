"""What is to be measured, and what was: the values that processes hand to each other. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from engine.convert.rope_scaling import llama3
from engine.describing.architecture import LLAMA_2_SIZES, DecoderConfig
from engine.describing.layers import Activation, Layer, Norms, QueryKeyNorm, Rotation


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process is to measure.

    folder: of the model. conversations: how many at once, one figure each. context: tokens around which
    decoding runs. tokens, seconds: each answer's length and how long its middle is looked at, at most.
    """

    folder: str
    conversations: tuple[int, ...] = (1, 8, 32, 64, 128)
    context: int = 512
    tokens: int = 128
    seconds: float = 30.0
    device: str = "auto"
    threads: int = 0
    temperature: float = 0.7

    @property
    def prompt_tokens(self) -> int:
        """Length of prompts whose answers have `context` tokens before them on average."""
        return max(2, self.context - self.tokens // 2)


@dataclass(frozen=True, slots=True)
class Load:
    """So many conversations at once. first_token_s: median. tokens_per_s: in total, while all answer."""

    conversations: int
    first_token_s: float
    tokens_per_s: float
    cut_short: bool = False
    """Whether an answer ended so early that the figure rests on few tokens."""

    @property
    def per_stream(self) -> float:
        """Tokens a second of one conversation."""
        return self.tokens_per_s / self.conversations

    @property
    def step_s(self) -> float:
        """Seconds from a token of a conversation to its next."""
        return self.conversations / self.tokens_per_s


@dataclass(frozen=True, slots=True)
class Figures:
    """What one side does. What could not be measured, or is not its, is None.

    first_token_s: of a new conversation alone. prefill: tokens a second of one prompt. second_turn_s: first
    token of a long conversation's second turn.
    """

    name: str
    provider: str
    loads: tuple[Load, ...]
    load_s: float
    first_token_s: float | None = None
    prefill: float | None = None
    second_turn_s: float | None = None
    second_turn_tokens: int | None = None
    resident_bytes: int | None = None
    free_before: int | None = None
    free_after: int | None = None

    def load(self, conversations: int) -> Load | None:
        """Return the figure of so many conversations."""
        return next((load for load in self.loads if load.conversations == conversations), None)


def plan_from(raw: Mapping[str, Any]) -> Plan:
    """Return the plan that `dataclasses.asdict` made an object for JSON of."""
    return Plan(**{**raw, "conversations": tuple(raw["conversations"])})


def figures_from(raw: Mapping[str, Any]) -> Figures:
    """Return the figures that `figures_json` made an object for JSON of."""
    return Figures(**{**raw, "loads": tuple(Load(**load) for load in raw["loads"])})


def figures_json(figures: Figures) -> dict[str, Any]:
    """Return figures as an object for JSON."""
    return asdict(figures)


@dataclass(frozen=True, slots=True)
class Stream:
    """When the pieces of one answer came, in seconds, and how many tokens they were."""

    times: Sequence[float]
    num_tokens: int
    first_token_s: float
    ended_early: bool = False


def shared_window(streams: Sequence[Stream]) -> tuple[float, float]:
    """Return seconds and tokens from when all streams are past their first piece until the first one ends.

    A piece counts as many tokens as its stream has on average: some need several for a character.
    """
    if not all(stream.times for stream in streams):
        return 0.0, 0.0
    start = max(stream.times[0] for stream in streams)
    end = min(stream.times[-1] for stream in streams)
    tokens = 0.0
    for stream in streams:
        inside = sum(start < time <= end for time in stream.times)
        tokens += inside * stream.num_tokens / len(stream.times)
    return max(0.0, end - start), tokens


def load_of(streams: Sequence[Stream], first_token_s: float) -> Load | None:
    """Return the figure of streams that ran together, None where no two tokens came in their window."""
    seconds, tokens = shared_window(streams)
    if seconds <= 0 or tokens <= 0:
        return None
    short = any(stream.ended_early for stream in streams)
    return Load(len(streams), first_token_s, tokens / seconds, short)


def median_first(streams: Sequence[Stream]) -> float:
    """Return the median time to the first token, in seconds."""
    return median(stream.first_token_s for stream in streams)


SHAPES = {
    "7b": LLAMA_2_SIZES["Llama 2 7B"],
    "13b": LLAMA_2_SIZES["Llama 2 13B"],
    "1.1b": DecoderConfig(22, 2048, 5632, 32, 4, 64, 32000, 2048, 1e4, 1e-5, tied_embeddings=False),
    "default": DecoderConfig(30, 576, 1536, 9, 3, 64, 49152, 2048, 1e5, 1e-5, tied_embeddings=True),
    "llama-3.2-1b": DecoderConfig(
        *(16, 2048, 8192, 32, 8, 64, 128256, 131072, 5e5, 1e-5),
        tied_embeddings=True,
        rope_scaling=llama3(64, 5e5, factor=32.0, low=1.0, high=4.0, original_context=8192),
    ),
    "qwen2.5-0.5b": DecoderConfig(
        24, 896, 4864, 14, 2, 64, 151936, 32768, 1e6, 1e-6, tied_embeddings=True, qkv_bias=True
    ),
    "qwen2.5-1.5b": DecoderConfig(
        28, 1536, 8960, 12, 2, 128, 151936, 32768, 1e6, 1e-6, tied_embeddings=True, qkv_bias=True
    ),
    "gemma-3-270m": DecoderConfig(
        *(18, 640, 2048, 4, 1, 256, 262144, 32768, 1e6, 1e-6),
        tied_embeddings=True,
        layers=tuple(
            Layer() if layer % 6 == 5 else Layer(window=512, rotation=Rotation.LOCAL) for layer in range(18)
        ),
        norms=Norms.AROUND,
        query_key_norm=QueryKeyNorm.HEAD,
        activation=Activation.GELU_TANH,
        embedding_scale=25.25,
    ),
}
"""Llama 2 7B and 13B, TinyLlama 1.1B, SmolLM2 135M, and small models of other families."""
