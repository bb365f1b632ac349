"""How much memory the models need with the answers they are to make."""

from __future__ import annotations

import dataclasses

from engine.describing.footprint import GPU_LIBRARIES_BYTES, PROCESS_BYTES, running_bytes
from engine.engine import EngineOptions, context_tokens, max_kv_tokens
from engine.machine.cuda_device import CudaDevice, NoCudaError, find_device
from engine.opening import ConvertedFolder
from engine.runtime.model_folder import ModelFolder

MODERATION_ANSWERS = 2
"""Verdicts that a moderation model makes at once."""


def moderation_options(options: EngineOptions) -> EngineOptions:
    """Return how a moderation model runs beside a model that runs with `options`."""
    return dataclasses.replace(options, max_concurrent=MODERATION_ANSWERS, chat_format="llama-2")


def runs_on_gpu(model: ModelFolder) -> bool:
    """Return whether a model can run on a GPU."""
    return isinstance(model, ConvertedFolder) and model.manifest.precision.runs_on_gpu


def gpu_for(device: str, model: ModelFolder) -> CudaDevice | None:
    """Return the GPU that a model is to run on, None for the CPU; `device` is as in `EngineOptions`."""
    if device == "cpu" or not runs_on_gpu(model):
        return None
    try:
        return find_device()
    except NoCudaError:
        return None


def gpu_bytes(model: ModelFolder, num_tokens: int) -> int:
    """Estimate what a model takes of a GPU's memory with the KV of so many tokens, in half precision."""
    return model.num_bytes + GPU_LIBRARIES_BYTES + num_tokens * model.kv_bytes_per_token // 2


def memory_needed(options: EngineOptions, model: ModelFolder, moderation: ModelFolder | None = None) -> int:
    """Estimate the bytes of weights, KV and process, with a moderation model beside the model."""
    beside = 0 if moderation is None else model_bytes(moderation_options(options), moderation)
    return model_bytes(options, model) + beside + PROCESS_BYTES


def model_bytes(options: EngineOptions, model: ModelFolder) -> int:
    """Estimate the bytes of a model's weights and of the KV that its answers take at most."""
    return running_bytes(model.num_bytes, model.precision) + kv_bytes(options, model)


def kv_bytes(options: EngineOptions, model: ModelFolder) -> int:
    """Estimate the bytes of KV that a model's answers take at most."""
    in_use = (model.max_answers or options.max_concurrent) * context_tokens(model, options)
    return min(in_use, max_kv_tokens(model, options)) * model.kv_bytes_per_token
