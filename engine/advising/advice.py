"""Which precision suits a machine and the load expected of it. Pure: values in, a table and sentences out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.footprint import (
    Footprint,
    Held,
    bit_shares,
    disk_bytes,
    footprint,
    kv_token_bound,
    kv_token_bytes,
    size,
)
from engine.machine.machine import Resources

_BEARS_4_BITS = 1_000_000_000
"""Parameters from which rounding to 4 bits costs little; SmolLM2-135M loses 0.1 to 0.9 nats a token by it."""
_MOSTLY = 0.5
MEASURED_CONTEXT = 512
"""Tokens of KV of each conversation with which speeds are measured and their floor is told."""


class Fit(StrEnum):
    """Whether a model fits the memory."""

    YES = "yes"
    NOT_NOW = "not now"
    """Other programs take what it needs."""
    NO = "no"


def figure(number: float, digits: int = 3) -> str:
    """Return a number rounded to so many digits, written as people do."""
    return f"{float(f'{number:.{digits}g}'):,.10g}"


@dataclass(frozen=True, slots=True)
class Load:
    """What is expected: conversations at once, each of at most `num_tokens`."""

    num_conversations: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """What weights are like already: where most have 4 bits, int4 loses nothing. held: how each is held.

    beside_bytes: what lies in a model's folder besides its weights.
    """

    has_4_bits: bool = False
    held: Held = field(default_factory=dict)
    beside_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second: of one conversation alone, of all together, and when a prompt is read."""

    single: float
    together: float
    prefill: float


@dataclass(frozen=True, slots=True)
class Option:
    """One precision: what it takes, whether that fits, and how fast it is where that was measured."""

    precision: Precision
    disk_bytes: int
    memory: Footprint
    fit: Fit
    speed: Speed | None
    bits: Mapping[int, float] = field(default_factory=dict)
    """Which share of the weights gets how many bits."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What fits and what is fastest: an option for each precision, the one recommended, and why."""

    load: Load
    candidates: tuple[Option, ...]
    chosen: Option | None
    sentences: tuple[str, ...]

    def option(self, precision: Precision) -> Option:
        """Return the option of one precision."""
        return next(option for option in self.candidates if option.precision is precision)


def advise(
    config: DecoderConfig,
    resources: Resources,
    load: Load,
    speeds: Mapping[Precision, Speed],
    blocks: Blocks | None = None,
) -> Advice:
    """Advise on a model of these dimensions; `speeds` are those that were measured."""
    blocks = blocks or Blocks()
    load = Load(load.num_conversations, min(load.num_tokens, config.context_length))
    candidates = _options(config, resources, load, speeds, blocks)
    bears_4_bits = blocks.has_4_bits or config.num_parameters >= _BEARS_4_BITS
    chosen = _choose(candidates, bears_4_bits=bears_4_bits, usual="int4" if blocks.has_4_bits else "int8")
    told = tuple(_sentences(candidates, chosen, config, resources, load))
    shares = bit_shares(config, Precision.INT4, blocks.held)
    if blocks.has_4_bits:
        told += (_of_4_bits(shares),)
    elif blocks.held and shares.get(8, 0.0) > _MOSTLY:
        told += (
            f"Its file has most weights in more than 4 bits: even in int4, {shares[8]:.0%} of them get 8, "
            "so that they aren't rounded twice.",
        )
    elif not bears_4_bits:
        told += ("int4 costs a model of this size much of what it knows; use it only if memory is short.",)
    return Advice(load, tuple(candidates), chosen, told)


def _kv_tokens(
    config: DecoderConfig, precision: Precision, resources: Resources, load: Load, blocks: Blocks
) -> int:
    """Return how many tokens' KV the answers come to take: others wait rather than take more."""
    free = resources.memory_bytes if resources.free_bytes is None else resources.free_bytes
    empty = footprint(config, precision, num_kv_tokens=0, held=blocks.held)
    return kv_token_bound(
        kv_token_bytes(config, precision),
        context=load.num_tokens,
        num_contexts=load.num_conversations,
        spare_bytes=free - empty.total,
    )


def _options(
    config: DecoderConfig,
    resources: Resources,
    load: Load,
    speeds: Mapping[Precision, Speed],
    blocks: Blocks,
) -> list[Option]:
    """Return an option for each precision."""
    made = []
    for precision in Precision:
        num_kv_tokens = _kv_tokens(config, precision, resources, load, blocks)
        memory = footprint(config, precision, num_kv_tokens=num_kv_tokens, held=blocks.held)
        disk = disk_bytes(config, precision, blocks.held) + blocks.beside_bytes
        shares = bit_shares(config, precision, blocks.held)
        made.append(Option(precision, disk, memory, _fit(memory, resources), speeds.get(precision), shares))
    return made


def _choose(candidates: list[Option], *, bears_4_bits: bool, usual: str) -> Option | None:
    """Return the option to recommend, None where nothing fits.

    Among those that keep the model's quality: the fastest for all conversations together where that was
    measured, else the `usual` one; 8 bits are close to float32 and a safe choice everywhere.
    """
    fitting = [option for option in candidates if option.fit is not Fit.NO and option.precision != "fp16"]
    pool = [option for option in fitting if bears_4_bits or option.precision != "int4"] or fitting
    if not pool:
        return None
    measured = [(option.speed.together, option) for option in pool if option.speed is not None]
    if measured:
        return max(measured, key=lambda entry: entry[0])[1]
    safe = [option for option in pool if option.precision == usual]
    return safe[0] if safe else min(pool, key=lambda option: option.memory.total)


def _sentences(
    candidates: list[Option], chosen: Option | None, config: DecoderConfig, resources: Resources, load: Load
) -> Iterator[str]:
    """Say what is recommended and why, and what is not worth trying."""
    if chosen is None:
        least = min(candidates, key=lambda option: option.memory.total)
        yield (
            f"Even {least.precision} needs {size(least.memory.total)} of memory, but there are only "
            f"{size(resources.memory_bytes)}. Choose a smaller model or context, or a larger machine."
        )
        return
    yield f"{chosen.precision} suits this machine: {_reason(chosen, load)}."
    if chosen.fit is Fit.NOT_NOW and resources.free_bytes is not None:
        yield f"Only {size(resources.free_bytes)} are free now: close other programs first."
    if any(option.precision == "fp16" for option in candidates):
        native = resources.processor.half
        yield (
            "fp16 is no faster than fp32 on a processor: the engine computes in float32 there"
            + (f", although this one has {native}" if native else ", and this one has no native fp16")
            + ". It only saves disk."
        )
    if resources.processor.flags and resources.processor.int8 is None:
        yield "This processor has no 8-bit dot product, so fewer bits gain less speed than on others."
    each = kv_token_bytes(config, chosen.precision)
    wanted = load.num_conversations * load.num_tokens * each
    if chosen.memory.kv < wanted:
        held = chosen.memory.kv // each
        yield (
            f"{load.num_conversations} conversations of {load.num_tokens} tokens would take "
            f"{size(wanted)} of KV, but there is memory for only {held} tokens, so questions wait for room. "
            "With a smaller CONTEXT_TOKENS, more are answered at once."
        )


def _of_4_bits(shares: Mapping[int, float]) -> str:
    taken = "Its weights already have 4 bits: int4 keeps them as they are"
    more = shares.get(8, 0.0)
    return (
        f"{taken}; {more:.0%} of them (embedding, head, and those with more bits) get 8."
        if more
        else f"{taken}."
    )


def bits_sentence(shares: Mapping[int, float]) -> str:
    """Say which share of the weights has how many bits."""
    if len(shares) == 1:
        return f"{next(iter(shares))} bits"
    return ", ".join(f"{share:.0%} in {bits} bits" for bits, share in shares.items())


def _reason(chosen: Option, load: Load) -> str:
    need = f"it needs {size(chosen.memory.total)}"
    if chosen.speed is None:
        return f"{need} (measure with --measure)"
    together, single = f"{figure(chosen.speed.together)} tokens/s", figure(chosen.speed.single)
    return (
        f"{need} and is the fastest here that keeps the model's quality: {together} for "
        f"{load.num_conversations} conversations together and {single} for one alone"
    )


def _fit(memory: Footprint, resources: Resources) -> Fit:
    if memory.total > resources.memory_bytes:
        return Fit.NO
    if resources.free_bytes is not None and memory.total > resources.free_bytes:
        return Fit.NOT_NOW
    return Fit.YES
