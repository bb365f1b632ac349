"""The tiny models of all families as sources, made once, and what was recorded of them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record_families import REFERENCE_FILE
from engine.convert.converter import convert, open_source
from engine.convert.source import ModelSource
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from tests.engine.reference_llama import Float64Array, reference_logits
from tests.engine.tiny_families import MAX_TOKENS, TinyFamily
from tests.engine.tiny_family_gguf import save_family_gguf

_SCRATCH = tempfile.TemporaryDirectory(prefix="families-")
MOST_APART = 2e-4
"""Of two logits in float32."""


@functools.cache
def recorded() -> dict[str, Any]:
    with np.load(REFERENCE_FILE) as file:
        return dict(file)


def recorded_ids(name: str) -> list[int]:
    return [int(token) for token in recorded()[f"{name}/ids"]]


@functools.cache
def folder_source(name: str) -> ModelSource:
    return open_source(TinyFamily(name).save(Path(_SCRATCH.name) / name))


@functools.cache
def gguf_source(name: str) -> ModelSource:
    return open_source(save_family_gguf(name, folder_source(name), Path(_SCRATCH.name) / f"{name}.gguf"))


@functools.cache
def exact(name: str) -> Float64Array:
    """Return what the reference computes after all recorded tokens of a folder: what transformers does."""
    source = folder_source(name)
    return reference_logits(source.config, source.tensor, recorded_ids(name), MAX_TOKENS)


@functools.cache
def exact_of_gguf(name: str) -> Float64Array:
    """Return what the reference computes of a GGUF file: what llama.cpp does."""
    source = gguf_source(name)
    return reference_logits(source.config, source.tensor, recorded_ids(name), MAX_TOKENS)


def model(source: ModelSource, folder: Path, precision: Precision) -> CpuModel:
    """Convert a source and load it for as many tokens as were recorded."""
    convert(source, folder, precision)
    return CpuModel(folder, load_manifest(folder), ModelOptions(1, 2, MAX_TOKENS))


def divergence(p_logits: Any, q_logits: Any) -> Any:
    """Return the Kullback-Leibler divergence of each row, in nats."""
    p, q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (p_logits, q_logits.astype(float)))
    return (np.exp(p) * (p - q)).sum(axis=1)
