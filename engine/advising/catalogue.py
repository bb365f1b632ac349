"""Models that are worth having, what each needs on a machine, and which one suits it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.advising.advice import MEASURED_CONTEXT, Blocks, Fit, Load, advise
from engine.describing.architecture import LLAMA_2_SIZES, DecoderConfig, Precision, Role, decoder_tensors
from engine.describing.footprint import (
    GPU_LIBRARIES_BYTES,
    Held,
    Kept,
    gpu_kv_token_bytes,
    gpu_step_bytes,
    gpu_weight_bytes,
    step_bytes,
)
from engine.machine.cuda_device import CudaDevice
from engine.machine.machine import Resources

_K_BLOCK, _BLOCK_OF_6_BITS = 256, 16
_LOAD = Load(num_conversations=1, num_tokens=4096)
"""For which memory is told: one whole conversation; several take more, as far as there is."""
_REACHED = 0.8
"""Share of the memory's bandwidth that steps reach, on a processor as on a GPU."""
_LEAST_SPEED = 5.0
"""Tokens a second below which nobody likes to wait: it is about what people read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model, with its files of 4 bits at Hugging Face. shape: its dimensions, from which sizes follow.

    architecture: what its GGUF file calls it. is_pick: recommended to whoever has no wish of their own.
    """

    name: str
    repository: str
    architecture: str
    licence: str
    shape: DecoderConfig
    good_at: str
    is_pick: bool = False

    @property
    def address(self) -> str:
        """Return what `MODEL` is set to."""
        return f"hf:{self.repository}:Q4_K_M"


@dataclass(frozen=True, slots=True)
class Here:
    """What a model needs on this machine. speed: tokens a second of one answer, about; None if not known."""

    entry: Entry
    disk_bytes: int
    memory_bytes: int
    fit: Fit
    speed: float | None


def _shape(
    layers: int, hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int, vocab: int, *, tied: bool
) -> DecoderConfig:
    """Return dimensions; what does not change a size is as Llama 2 has it."""
    return DecoderConfig(
        layers, hidden, inner, heads, kv_heads, head_dim, vocab, 8192, 1e4, 1e-5, tied_embeddings=tied
    )


ENTRIES: tuple[Entry, ...] = (
    Entry(
        "Qwen2.5 0.5B", "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2", "Apache-2.0",
        _shape(24, 896, 4864, 14, 2, 64, 151936, tied=True), "the smallest that makes sense", True,
    ),
    Entry(
        "Llama 3.2 1B", "bartowski/Llama-3.2-1B-Instruct-GGUF", "llama", "Llama 3.2",
        _shape(16, 2048, 8192, 32, 8, 64, 128256, tied=True), "small talk and short texts", True,
    ),
    Entry(
        "Qwen2.5 1.5B", "Qwen/Qwen2.5-1.5B-Instruct-GGUF", "qwen2", "Apache-2.0",
        _shape(28, 1536, 8960, 12, 2, 128, 151936, tied=True), "simple questions, code",
    ),
    Entry(
        "Llama 3.2 3B", "bartowski/Llama-3.2-3B-Instruct-GGUF", "llama", "Llama 3.2",
        _shape(28, 3072, 8192, 24, 8, 128, 128256, tied=True), "conversation: the usual first choice", True,
    ),
    Entry(
        "Phi-4-mini 3.8B", "bartowski/microsoft_Phi-4-mini-instruct-GGUF", "phi3", "MIT",
        _shape(32, 3072, 8192, 24, 8, 128, 200064, tied=True), "sums, logic and code",
    ),
    Entry(
        "Gemma 3 4B", "bartowski/google_gemma-3-4b-it-GGUF", "gemma3", "Gemma",
        _shape(34, 2560, 10240, 8, 4, 256, 262208, tied=True), "well written, in many languages", True,
    ),
    Entry(
        "Qwen3 4B", "Qwen/Qwen3-4B-GGUF", "qwen3", "Apache-2.0",
        _shape(36, 2560, 9728, 32, 8, 128, 151936, tied=True), "thinks first: often right, slow",
    ),
    Entry(
        "Llama 2 7B Chat", "TheBloke/Llama-2-7B-Chat-GGUF", "llama", "Llama 2",
        LLAMA_2_SIZES["Llama 2 7B"], "the classic; newer ones know more",
    ),
    Entry(
        "Mistral 7B v0.3", "bartowski/Mistral-7B-Instruct-v0.3-GGUF", "llama", "Apache-2.0",
        _shape(32, 4096, 14336, 32, 8, 128, 32768, tied=False), "stories and role play",
    ),
    Entry(
        "Llama 3.1 8B", "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "llama", "Llama 3.1",
        _shape(32, 4096, 14336, 32, 8, 128, 128256, tied=False), "a good assistant in all fields", True,
    ),
    Entry(
        "Qwen3 8B", "Qwen/Qwen3-8B-GGUF", "qwen3", "Apache-2.0",
        _shape(36, 4096, 12288, 32, 8, 128, 151936, tied=False), "thinks first; code and sums",
    ),
    Entry(
        "Mistral Nemo 12B", "bartowski/Mistral-Nemo-Instruct-2407-GGUF", "llama", "Apache-2.0",
        _shape(40, 5120, 14336, 32, 8, 128, 131072, tied=False), "stories, role play, many languages", True,
    ),
    Entry(
        "Phi-4 14B", "bartowski/phi-4-GGUF", "phi3", "MIT",
        _shape(40, 5120, 17920, 40, 10, 128, 100352, tied=False), "sums, logic and code",
    ),
    Entry(
        "Mistral Small 24B", "bartowski/Mistral-Small-24B-Instruct-2501-GGUF", "llama", "Apache-2.0",
        _shape(40, 5120, 32768, 32, 8, 128, 131072, tied=False), "nearly all that large models can", True,
    ),
)  # fmt: skip
"""From small to large."""


def on_this_machine(
    resources: Resources, bandwidth: float | None, device: CudaDevice | None = None
) -> tuple[Here, ...]:
    """Return what each model needs, on the GPU if there is one. bandwidth: of the memory, bytes a second."""
    return tuple(
        _on_gpu(entry, device) if device is not None else _on_cpu(entry, resources, bandwidth)
        for entry in ENTRIES
    )


def pick(found: Sequence[Here]) -> Here | None:
    """Return the largest recommended model that fits and is fast enough, None if none fits."""
    fitting = [one for one in found if one.entry.is_pick and one.fit is Fit.YES]
    fast = [one for one in fitting if one.speed is None or one.speed >= _LEAST_SPEED]
    chosen = fast or fitting[:1]
    return chosen[-1] if chosen else None


def held_by_q4_k_m(shape: DecoderConfig) -> Held:
    """Return how the decoder's matrices are held by a file of the kind Q4_K_M, as llama.cpp makes it.

    Values and the last matrix of each MLP have six bits in half of the layers, and so has the head; what does
    not divide into its blocks of 256 has five or eight. All of these become eight.
    """
    held: dict[str, Kept] = {}
    for tensor in decoder_tensors(shape):
        divides = tensor.columns % _K_BLOCK == 0
        if tensor.role is (Role.EMBEDDING if shape.tied_embeddings else Role.HEAD) and divides:
            held[tensor.name] = Kept(8, block_size=_BLOCK_OF_6_BITS)
        elif tensor.role is Role.LINEAR:
            _, layer, part = tensor.name.split(".")
            more = part in ("qkv", "down") and _has_more_bits(int(layer), shape.num_layers)
            if more:
                held[tensor.name] = Kept(8, part == "qkv", _BLOCK_OF_6_BITS)
            else:
                held[tensor.name] = Kept(4 if divides else 8, divides)
    return held


def _has_more_bits(layer: int, num_layers: int) -> bool:
    first, last = num_layers // 8, 7 * num_layers // 8
    return layer < first or layer >= last or (layer - first) % 3 == 2


def _on_cpu(entry: Entry, resources: Resources, bandwidth: float | None) -> Here:
    blocks = Blocks(has_4_bits=True, held=held_by_q4_k_m(entry.shape))
    option = advise(entry.shape, resources, _LOAD, {}, blocks).option(Precision.INT4)
    read = step_bytes(entry.shape, Precision.INT4, num_tokens=MEASURED_CONTEXT, num_conversations=1)
    speed = None if bandwidth is None else _REACHED * bandwidth / read
    return Here(entry, option.disk_bytes, option.memory.total, option.fit, speed)


def _on_gpu(entry: Entry, device: CudaDevice) -> Here:
    weights = gpu_weight_bytes(entry.shape, Precision.INT4)
    memory = weights + GPU_LIBRARIES_BYTES + _LOAD.num_tokens * gpu_kv_token_bytes(entry.shape)
    read = gpu_step_bytes(entry.shape, Precision.INT4, num_tokens=MEASURED_CONTEXT, num_conversations=1)
    fit = Fit.YES if memory <= device.total_bytes else Fit.NO
    return Here(entry, weights, memory, fit, _REACHED * device.bandwidth / read)
