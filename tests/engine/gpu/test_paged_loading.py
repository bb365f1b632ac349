"""A converted model is loaded for a GPU: how much KV it gets, and that nonsense is not let through."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine.convert import converter
from engine.describing.architecture import LLAMA_2_SIZES, Precision
from engine.describing.manifest import WEIGHTS_FILE, load_manifest
from engine.errors import ModelFormatError, ModelResourceError
from engine.gpu.loading import Attention, block_size, load_paged_model, num_blocks
from engine.gpu.model import PagedModel
from engine.machine.cuda_device import NoCudaError
from engine.runtime.model_folder import RunnerSize
from tests.engine.tiny_model import make_tiny_model, tiny_config

SEVEN_B = LLAMA_2_SIZES["Llama 2 7B"]
GIB = 2**30
SIZE = RunnerSize(num_threads=1, num_answers=4, max_tokens=300, max_kv_tokens=0)


def load(folder: Path, *, free: int = GIB, size: RunnerSize = SIZE) -> PagedModel:
    """Load the model as for a GPU with so many free bytes, on the CPU."""
    manifest = load_manifest(folder)
    return load_paged_model(folder, manifest, size, Attention.PLAIN, device="cpu", free=lambda: free)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8, Precision.INT4])
def test_a_model_that_says_what_the_cpu_said_is_loaded(tmp_path: Path, precision: Precision) -> None:
    model = load(make_tiny_model(tmp_path / "model", precision))
    assert (model.num_blocks, model.block_size) == (1 + 2 * 4 * 2, 256)
    model.close()


def test_a_model_that_says_something_else_is_not(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", Precision.INT8)
    manifest = load_manifest(folder)
    down, up = manifest.tensors["layers.0.down"], manifest.tensors["layers.1.down"]
    exchanged = {**manifest.tensors, "layers.0.down": up, "layers.1.down": down}
    changed = dataclasses.replace(manifest, tensors=exchanged)
    with pytest.raises(ModelResourceError, match=r"something else than the CPU|no numbers"):
        load_paged_model(folder, changed, SIZE, Attention.PLAIN, device="cpu", free=lambda: GIB)


def test_changed_weights_are_noticed_before_they_are_loaded(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", Precision.INT8)
    with (folder / WEIGHTS_FILE).open("r+b") as file:
        file.write(b"x")
    with pytest.raises(ModelFormatError, match="does not match its checksum"):
        load(folder)


def test_without_memory_for_the_cpu_a_conversion_records_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "_reference", lambda *_: None)
    folder = make_tiny_model(tmp_path / "model", Precision.INT4)
    assert load_manifest(folder).reference is None
    load(folder).close()


def test_too_little_memory_is_said_with_what_would_help(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", Precision.INT8)
    with pytest.raises(ModelResourceError, match=r"one answer of 300 tokens needs .* Lower CONTEXT_TOKENS"):
        load(folder, free=-(2**20))


def test_where_free_memory_is_not_known_nothing_is_loaded(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", Precision.INT8)

    def unknown() -> int:
        raise NoCudaError("the NVIDIA driver failed (error 1)")

    with pytest.raises(ModelResourceError, match="how much memory is free: the NVIDIA driver failed"):
        load_paged_model(folder, load_manifest(folder), SIZE, Attention.PLAIN, device="cpu", free=unknown)


def test_less_memory_than_was_free_gives_fewer_blocks_and_never_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[int] = []
    allocate = PagedModel.allocate

    def short(model: PagedModel, num: int) -> None:
        wanted.append(num)
        if num > 8:
            raise ModelResourceError("The device has no room.")
        allocate(model, num)

    monkeypatch.setattr(PagedModel, "allocate", short)
    model = load(make_tiny_model(tmp_path / "model", Precision.INT8))
    assert model.num_blocks == wanted[-1] <= 8
    assert wanted[1] == 17
    model.close()


def seven_b(answers: int, free: float, kv_cache_mb: int = 0) -> int:
    size = RunnerSize(1, answers, 4096, 0, kv_cache_mb=kv_cache_mb)
    return num_blocks(SEVEN_B, size, int(free * GIB))


def test_kv_takes_what_is_useful_of_what_is_free() -> None:
    assert block_size(SEVEN_B) == 128
    assert block_size(tiny_config()) == 256
    # A block of Llama 2 7B takes 64 MiB, a context of 4096 tokens 32 of them.
    assert seven_b(answers=8, free=70.0) == 1 + 2 * 8 * 32, "two contexts for each answer"
    assert seven_b(answers=64, free=40.0) == int(40 * 0.92 * 16), "as much as there is"
    assert seven_b(answers=8, free=70.0, kv_cache_mb=6400) == 1 + 100, "as much as is allowed"
    assert seven_b(answers=8, free=70.0, kv_cache_mb=64) == 1 + 32, "one answer always fits"
    with pytest.raises(ModelResourceError, match=r"1\.9 GiB are free .* needs 2\.0"):
        seven_b(answers=1, free=1.9)
