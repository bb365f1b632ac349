"""Which precision suits a GPU and the load expected of it. Pure: values in, a table and sentences out.

A step reads every weight once, and all KV. Weights of few bits are read faster, but must be unpacked: with
more conversations at once that costs what it saves. How much is interpolated between what was measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.advising.advice import Fit, Load, figure
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.footprint import (
    GPU_LIBRARIES_BYTES,
    NUMBERS,
    Held,
    gpu_kv_token_bytes,
    gpu_weight_bytes,
    size,
)
from engine.machine.cuda_device import CudaDevice

_REACHED = 0.8
"""Share of the memory's bandwidth that a whole step reaches; 75 to 85 % on an H100."""
_PRECISIONS = (Precision.FP16, Precision.INT8, Precision.INT4)
_WORTH_BITS = 1.1
"""So much faster must fewer bits be to be preferred."""

_MATMULS: Mapping[Precision, Mapping[int, float]] = {
    Precision.FP16: {1: 1.0},
    Precision.INT8: {1: 0.66, 8: 0.68, 32: 0.81, 64: 0.90, 128: 1.36},
    Precision.INT4: {1: 0.50, 8: 0.59, 32: 0.79, 64: 0.90, 128: 1.25},
}
"""Time of the products of Llama 2 7B's shapes as a share of half precision's, by rows; on an H100."""


@dataclass(frozen=True, slots=True)
class GpuOption:
    """One precision: bytes of weights, conversations that fit at once beside them, and how fast it should be.

    single and together: tokens a second of one conversation, and of all that run at once.
    """

    precision: Precision
    weights: int
    num_fitting: int
    fit: Fit
    single: float
    together: float


@dataclass(frozen=True, slots=True)
class GpuAdvice:
    """What fits a GPU, and the option recommended, None where nothing fits.

    kv: bytes of one whole conversation.
    """

    device: CudaDevice
    load: Load
    kv: int
    candidates: tuple[GpuOption, ...]
    chosen: GpuOption | None
    sentences: tuple[str, ...]


def advise_gpu(
    config: DecoderConfig,
    device: CudaDevice,
    free_bytes: int,
    load: Load,
    *,
    has_4_bits: bool = False,
    held: Held = NUMBERS,
) -> GpuAdvice:
    """Advise on a model of these dimensions; `free_bytes` are those of the device's memory that nobody uses.

    `has_4_bits` says that the weights have few bits already, so that int4 loses nothing.
    """
    load = Load(load.num_conversations, min(load.num_tokens, config.context_length))
    kv = gpu_kv_token_bytes(config) * load.num_tokens
    candidates = tuple(
        _option(config, precision, device, free_bytes, load, held) for precision in _PRECISIONS
    )
    chosen = _choose(candidates, has_4_bits=has_4_bits)
    sentences = tuple(_sentences(candidates, chosen, device, load))
    return GpuAdvice(device, load, kv, candidates, chosen, sentences)


def _option(
    config: DecoderConfig,
    precision: Precision,
    device: CudaDevice,
    free_bytes: int,
    load: Load,
    held: Held,
) -> GpuOption:
    weights = gpu_weight_bytes(config, precision, held)
    kv = gpu_kv_token_bytes(config) * load.num_tokens
    room, room_now = (memory - GPU_LIBRARIES_BYTES - weights for memory in (device.total_bytes, free_bytes))
    num_fitting = max(0, room // kv)
    fit = Fit.NO if num_fitting == 0 else Fit.YES if room_now >= kv else Fit.NOT_NOW
    num_rows = min(load.num_conversations, num_fitting)
    half = gpu_weight_bytes(config, Precision.FP16)

    def speed(rows: int) -> float:
        """Return tokens a second; conversations are half full on average."""
        read = half * _matmul_share(precision, rows) + rows * kv / 2
        return rows * _REACHED * device.bandwidth / read if rows else 0.0

    return GpuOption(precision, weights, num_fitting, fit, speed(min(1, num_rows)), speed(num_rows))


def _matmul_share(precision: Precision, num_rows: int) -> float:
    """Interpolate between the numbers of rows that were measured, by their logarithms; flat outside."""
    known = sorted(_MATMULS[precision].items())
    for (low, before), (high, after) in itertools.pairwise(known):
        if low <= num_rows <= high:
            return before + (after - before) * math.log(num_rows / low) / math.log(high / low)
    return known[0][1] if num_rows < known[0][0] else known[-1][1]


def _choose(candidates: tuple[GpuOption, ...], *, has_4_bits: bool) -> GpuOption | None:
    """Return the fastest for all conversations together; of those about as fast, the one of the most bits."""
    fitting = [option for option in candidates if option.fit is not Fit.NO]
    if not fitting:
        return None
    if has_4_bits and fitting[-1].precision is Precision.INT4:
        return fitting[-1]
    best = max(option.together for option in fitting)
    return next(option for option in fitting if option.together * _WORTH_BITS >= best)


def _sentences(
    candidates: tuple[GpuOption, ...], chosen: GpuOption | None, device: CudaDevice, load: Load
) -> Iterator[str]:
    if chosen is None:
        least = min(option.weights for option in candidates) + GPU_LIBRARIES_BYTES
        yield (
            f"Even int4 does not fit {device.name}: it needs {size(least)} plus KV, but there are only "
            f"{size(device.total_bytes)}. It runs on the CPU."
        )
        return
    num_rows = min(load.num_conversations, chosen.num_fitting)
    yield (
        f"{chosen.precision} suits {device.name}: up to about {figure(chosen.together)} tokens/s for "
        f"{num_rows} conversations together and {figure(chosen.single)} for one alone, estimated from its "
        "bandwidth. `python -m engine bench` measures it."
    )
    if chosen.num_fitting < load.num_conversations:
        yield (
            f"{chosen.num_fitting} conversations of {load.num_tokens} tokens fit at once; further questions "
            "wait. With fewer bits or a smaller CONTEXT_TOKENS, more are answered at once."
        )
    if chosen.fit is Fit.NOT_NOW:
        yield f"Other programs use {device.name}'s memory now: close them first."
    if not device.has_paged_attention:
        yield f"{device.name} has no paged attention: elementary operators replace it, which is slower."
