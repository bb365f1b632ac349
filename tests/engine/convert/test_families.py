"""Every family computes what transformers says of it, in all precisions."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.record_families import REFERENCE_FILE
from engine.convert.converter import convert, open_source
from engine.convert.source import ModelSource
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from tests.engine.reference_llama import Float64Array, reference_logits
from tests.engine.tiny_families import CASES, MAX_TOKENS, NUM_GREEDY, NUM_PROMPT, TinyFamily

_MOST_APART = 2e-4


@functools.cache
def recorded() -> dict[str, Any]:
    with np.load(REFERENCE_FILE) as file:
        return dict(file)


def recorded_ids(name: str) -> list[int]:
    return [int(token) for token in recorded()[f"{name}/ids"]]


@functools.cache
def exact(name: str) -> Float64Array:
    """Return what the reference computes after all recorded tokens, which is what transformers does."""
    return reference_logits(source(name).config, source(name).tensor, recorded_ids(name), MAX_TOKENS)


_FOLDERS: dict[str, ModelSource] = {}


def source(name: str) -> ModelSource:
    return _FOLDERS[name]


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    case = str(request.param)
    if case not in _FOLDERS:
        _FOLDERS[case] = open_source(TinyFamily(case).save(tmp_path_factory.mktemp("families") / case))
    return case


def model(name: str, folder: Path, precision: Precision) -> CpuModel:
    convert(source(name), folder, precision)
    return CpuModel(folder, load_manifest(folder), ModelOptions(1, 2, MAX_TOKENS))


def test_the_reference_is_what_transformers_computes(name: str) -> None:
    rows, columns, said = recorded()["rows"], recorded()["columns"], exact(name)
    assert np.abs(said[rows][:, columns] - recorded()[f"{name}/logits"]).max() < _MOST_APART
    expected = recorded()[f"{name}/logsumexp"]
    assert np.abs(np.logaddexp.reduce(said[rows], axis=1) - expected).max() < _MOST_APART


def test_float32_equals_the_reference_in_chunks_and_cached_steps(name: str, tmp_path: Path) -> None:
    made = model(name, tmp_path / "model", Precision.FP32)
    prompt, expected = recorded_ids(name)[:NUM_PROMPT], exact(name)
    ids, ends = list(prompt), [0, 2, 77, 300, NUM_PROMPT]
    for start, end in itertools.pairwise(ends):
        row = made.prefill(0, prompt[start:end], start).copy()
        assert np.abs(row - expected[end - 1]).max() < _MOST_APART
    for _ in range(NUM_GREEDY):
        row[ids[NUM_PROMPT:]] = -np.inf
        ids.append(int(row.argmax()))
        row = made.decode(0, [ids[-1], 5], [len(ids) - 1, 0])[0].copy()
        assert np.abs(row - expected[len(ids) - 1]).max() < _MOST_APART
    assert ids == recorded_ids(name)


def test_eight_bits_stay_close_and_halves_and_four_bits_run(name: str, tmp_path: Path) -> None:
    ids, expected = recorded_ids(name)[:NUM_PROMPT], exact(name)[:NUM_PROMPT]
    most = {Precision.FP16: 1e-4, Precision.INT8: 0.02, Precision.INT4: 0.5}
    for precision, limit in most.items():
        said = model(name, tmp_path / precision, precision).score(0, ids, 0)
        assert 0 < np.mean(divergence(expected, said)) < limit, precision


def divergence(p_logits: Any, q_logits: Any) -> Any:
    """Return the Kullback-Leibler divergence of each row, in nats."""
    p, q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (p_logits, q_logits.astype(float)))
    return (np.exp(p) * (p - q)).sum(axis=1)
