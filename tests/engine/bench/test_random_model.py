"""Random weights of true dimensions: they run, each matrix is its own, and the disk holds few of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engine.bench import random_model
from engine.bench.figures import SHAPES
from engine.bench.peers import PublishedLoop
from engine.bench.random_model import write_random_model
from engine.bench.release_author import ReleaseShape, write_release
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import DecoderConfig, Precision
from engine.describing.manifest import WEIGHTS_FILE, load_manifest, verify_files
from engine.describing.stored import BlockTensor

SMALL = DecoderConfig(2, 128, 256, 4, 2, 32, 384, 1024, 1e4, 1e-5, tied_embeddings=False)


@pytest.mark.parametrize("precision", list(Precision))
def test_random_weights_run_and_say_numbers(tmp_path: Path, precision: Precision) -> None:
    folder = write_random_model(tmp_path / "model", SMALL, precision)
    manifest = load_manifest(folder)
    verify_files(folder, manifest, full=True)
    logits = CpuModel(folder, manifest, ModelOptions(1, 1, 64)).prefill(0, list(range(40)), 0)
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen2.5-0.5b", "gemma-3-270m"])
def test_a_few_layers_of_other_families_run(tmp_path: Path, name: str) -> None:
    part = SHAPES[name].shortened(2)
    sizes: dict[str, Any] = {"vocab_size": 384, "hidden_size": 128, "intermediate_size": 256}
    config = dataclasses.replace(part, **sizes, num_heads=2, num_kv_heads=1)
    folder = write_random_model(tmp_path / "model", config, Precision.INT4)
    logits = CpuModel(folder, load_manifest(folder), ModelOptions(1, 1, 64)).prefill(0, list(range(40)), 0)
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


def test_matrices_of_one_shape_lie_on_the_disk_once(tmp_path: Path) -> None:
    small = write_random_model(tmp_path / "small", SMALL, Precision.INT4)
    many = write_random_model(tmp_path / "many", dataclasses.replace(SMALL, num_layers=20), Precision.INT4)
    sizes = [(folder / WEIGHTS_FILE).stat().st_size for folder in (small, many)]
    assert sizes[0] == sizes[1]
    assert random_model._random_blocks.cache_info().currsize == 0, "memory is given back"


def test_no_two_matrices_are_the_same_or_one_copy_would_serve_all(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, num_layers=20, hidden_size=512, intermediate_size=1024)
    folder = write_random_model(tmp_path / "model", config, Precision.INT4)
    tensors = load_manifest(folder).tensors
    for part in ("qkv", "o", "gate_up", "down"):
        values, scales = [], []
        for tensor in (tensors[f"layers.{layer}.{part}"] for layer in range(20)):
            assert isinstance(tensor, BlockTensor)
            shape = (tensor.shape[0], tensor.num_blocks)
            path = folder / WEIGHTS_FILE
            values.append(np.memmap(path, np.uint8, "r", tensor.values, (*shape, tensor.value_bytes)))
            scales.append(np.memmap(path, np.float32, "r", tensor.scales, shape))
        assert len({read.tobytes() for read in values}) == 20, part
        assert len({read.astype(np.float16).tobytes() for read in scales}) == 20, part
        assert all((read > 0).all() for read in scales)


@pytest.mark.parametrize("tied", [True, False])
def test_the_end_is_never_likely(tmp_path: Path, tied: bool) -> None:
    config = dataclasses.replace(SMALL, tied_embeddings=tied)
    for precision in (Precision.INT4, Precision.INT8, Precision.FP16):
        folder = write_random_model(tmp_path / precision, config, precision)
        logits = CpuModel(folder, load_manifest(folder), ModelOptions(1, 1, 64)).prefill(
            0, list(range(40)), 0
        )
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
