"""Random weights of true dimensions: they run, each matrix is its own, and the disk holds few of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engine.bench import random_model
from engine.bench.peers import PublishedLoop
from engine.bench.random_model import write_random_model
from engine.bench.release_author import ReleaseShape, write_release
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.manifest import (
    CUDA_DECODER_FILE,
    CUDA_WEIGHTS_FILE,
    DECODER_FILE,
    WEIGHTS_FILE,
    load_manifest,
    verify_files,
)
from engine.graphs.paged_graph import StoredConstants

SMALL = DecoderConfig(2, 128, 256, 4, 2, 32, 384, 1024, 1e4, 1e-5, tied_embeddings=False)


@pytest.mark.parametrize("precision", list(Precision))
def test_random_weights_run_and_say_numbers(tmp_path: Path, precision: Precision) -> None:
    folder = write_random_model(tmp_path / "model", SMALL, precision)
    manifest = load_manifest(folder)
    verify_files(folder, manifest, full=True)
    logits = CpuModel(folder, SMALL, ModelOptions(1, 1, 64)).prefill(0, list(range(40)), 0)
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10
    assert manifest.runs_on_gpu == (precision is not Precision.FP32)


def test_matrices_of_one_shape_lie_on_the_disk_once(tmp_path: Path) -> None:
    small = write_random_model(tmp_path / "small", SMALL, Precision.INT4)
    many = write_random_model(tmp_path / "many", dataclasses.replace(SMALL, num_layers=20), Precision.INT4)
    for name in (WEIGHTS_FILE, CUDA_WEIGHTS_FILE):
        sizes = [(folder / name).stat().st_size for folder in (small, many)]
        assert sizes[0] == sizes[1]
    assert random_model._random_blocks.cache_info().currsize == 0, "memory is given back"


@pytest.mark.parametrize("graph", [DECODER_FILE, CUDA_DECODER_FILE])
def test_no_two_matrices_are_the_same_or_one_copy_would_serve_all(tmp_path: Path, graph: str) -> None:
    config = dataclasses.replace(SMALL, num_layers=20, hidden_size=512, intermediate_size=1024)
    folder = write_random_model(tmp_path / "model", config, Precision.INT4)
    stored = StoredConstants(folder / graph)
    for part in ("qkv", "o", "gate_up", "down"):
        for what in ("values", "scales"):
            names = [f"layers.{layer}.{part}.{what}" for layer in range(20)]
            read = [np.asarray(stored.read(name)) for name in names]
            assert len({values.tobytes() for values in read}) == 20, part
            assert len({values.shape for values in read}) == 1
            if what == "scales":
                assert all((values > 0).all() for values in read)


@pytest.mark.parametrize("tied", [True, False])
def test_the_end_is_never_likely(tmp_path: Path, tied: bool) -> None:
    config = dataclasses.replace(SMALL, tied_embeddings=tied)
    for precision in (Precision.INT4, Precision.INT8, Precision.FP16):
        folder = write_random_model(tmp_path / precision, config, precision)
        logits = CpuModel(folder, config, ModelOptions(1, 1, 64)).prefill(0, list(range(40)), 0)
        assert logits[load_manifest(folder).eos_id] == 0


def test_a_release_that_repeats_its_matrices_has_different_ones(tmp_path: Path) -> None:
    shape = ReleaseShape(num_layers=3, repeats=True)
    release = write_release(tmp_path / "random_float32", shape)
    graph = next((release / "ONNX").glob("*.onnx"))
    model = onnx.load(str(graph))
    square = [numpy_helper.to_array(t) for t in model.graph.initializer if list(t.dims) == [64, 64]]
    assert len(square) == 3 * 4
    assert len({values.tobytes() for values in square}) == 3 * 4
    assert np.isfinite(PublishedLoop(release).feed([5, 6, 7])).all()
