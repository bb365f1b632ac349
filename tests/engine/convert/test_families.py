"""Every family computes what transformers says of it, in all precisions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from engine.describing.architecture import Precision
from engine.describing.footprint import disk_bytes
from engine.describing.manifest import WEIGHTS_FILE
from engine.describing.stored import ALIGNMENT
from tests.engine.family_sources import (
    MOST_APART,
    divergence,
    exact,
    folder_source,
    model,
    recorded,
    recorded_ids,
)
from tests.engine.tiny_families import CASES, NUM_GREEDY, NUM_PROMPT


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_what_transformers_computes(name: str) -> None:
    rows, columns, said = recorded()["rows"], recorded()["columns"], exact(name)
    assert np.abs(said[rows][:, columns] - recorded()[f"{name}/logits"]).max() < MOST_APART
    expected = recorded()[f"{name}/logsumexp"]
    assert np.abs(np.logaddexp.reduce(said[rows], axis=1) - expected).max() < MOST_APART


@pytest.mark.parametrize("name", CASES)
def test_float32_equals_the_reference_in_chunks_and_cached_steps(name: str, tmp_path: Path) -> None:
    made = model(folder_source(name), tmp_path / "model", Precision.FP32)
    prompt, expected = recorded_ids(name)[:NUM_PROMPT], exact(name)
    ids, ends = list(prompt), [0, 2, 77, 300, NUM_PROMPT]
    for start, end in itertools.pairwise(ends):
        row = made.prefill(0, prompt[start:end], start).copy()
        assert np.abs(row - expected[end - 1]).max() < MOST_APART
    for _ in range(NUM_GREEDY):
        row[ids[NUM_PROMPT:]] = -np.inf
        ids.append(int(row.argmax()))
        row = made.decode(0, [ids[-1], 5], [len(ids) - 1, 0])[0].copy()
        assert np.abs(row - expected[len(ids) - 1]).max() < MOST_APART
    assert ids == recorded_ids(name)


@pytest.mark.parametrize("name", CASES)
def test_eight_bits_stay_close_and_halves_and_four_bits_run(name: str, tmp_path: Path) -> None:
    ids, expected = recorded_ids(name)[:NUM_PROMPT], exact(name)[:NUM_PROMPT]
    most = {Precision.FP16: 1e-4, Precision.INT8: 0.02, Precision.INT4: 0.5}
    for precision, limit in most.items():
        said = model(folder_source(name), tmp_path / precision, precision).score(0, ids, 0)
        assert 0 < np.mean(divergence(expected, said)) < limit, precision
        on_disk = (tmp_path / precision / WEIGHTS_FILE).stat().st_size
        foretold = disk_bytes(folder_source(name).config, precision)
        assert on_disk == pytest.approx(foretold, abs=ALIGNMENT), precision
