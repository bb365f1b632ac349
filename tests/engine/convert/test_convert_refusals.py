"""What the converter refuses: places it cannot write to, and sources that would make a broken model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from engine.convert.converter import convert
from engine.convert.source import FloatArray
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from engine.errors import ModelFormatError, ModelResourceError
from engine.machine import machine
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_model import ChangedSource, TinySource, make_tiny_model, tiny_config


class DiskUsage(NamedTuple):
    """What `shutil.disk_usage` tells, as far as it is asked."""

    free: int


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_destination_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes").write_text("mine")
    with pytest.raises(ModelResourceError, match=r"already exists\. Remove it or choose another folder\.$"):
        make_tiny_model(tmp_path / "model")
    assert names(tmp_path / "model") == ["notes"]


def test_a_small_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: DiskUsage(free=10**6))
    with pytest.raises(ModelResourceError, match=r"has 0\.0 GiB free, the model needs 0\.1\. Free some"):
        make_tiny_model(tmp_path / "model")
    assert names(tmp_path) == []


def test_too_little_memory_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 10**8)
    message = r"^[0-9.]+ MiB of memory are free, and converting it needs [0-9.]+ MiB\. Close other programs"
    with pytest.raises(ModelResourceError, match=message):
        make_tiny_model(tmp_path / "model")
    assert names(tmp_path) == []
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: None)
    make_tiny_model(tmp_path / "model")


UNWRITABLE = {
    "below a file": ("file/model", "Not a directory|File exists"),
    "far below a file": ("file/deep/er/model", "Not a directory"),
    "a name too long": ("x" * 300, "File name too long"),
}


@pytest.mark.parametrize(("path", "reason"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_an_unwritable_place_is_one_sentence(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelResourceError, match=rf"could not be written to .*: ({reason})\.$"):
        make_tiny_model(tmp_path / path)
    assert names(tmp_path) == ["file"]


def drop_a_row(name: str, values: FloatArray) -> FloatArray:
    return values[:-1] if name == "layers.1.up" else values


def transpose(name: str, values: FloatArray) -> FloatArray:
    return values.T if name == "layers.0.down" else values


def poison(name: str, values: FloatArray) -> FloatArray:
    if name == "layers.2.v":
        values[3, 5] = np.nan
    return values


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_a_row, r"layers\.1\.up has the shape \(95, 64\) instead of \(96, 64\)"),
        (transpose, r"layers\.0\.down has the shape \(96, 64\) instead of \(64, 96\)"),
        (poison, r"layers\.2\.v is damaged"),
    ],
)
def test_tensors_that_would_break_the_model_are_refused(
    tmp_path: Path,
    precision: Precision,
    change: Callable[[str, FloatArray], FloatArray],
    message: str,
) -> None:
    with pytest.raises(ModelFormatError, match=message):
        convert(ChangedSource(change), tmp_path / "model", precision)
    assert names(tmp_path) == []


def test_eight_bits_need_whole_blocks(tmp_path: Path) -> None:
    odd = TinySource(replace(tiny_config(), hidden_size=48))
    with pytest.raises(ModelFormatError, match="48 inputs are not a multiple of the block size 32"):
        convert(odd, tmp_path / "model", Precision.INT8)
    assert names(tmp_path) == []
    convert(odd, tmp_path / "model", Precision.FP32)
    model = CpuModel(tmp_path / "model", load_manifest(tmp_path / "model"), ModelOptions(1, 1, 64))
    exact = reference_logits(odd.config, odd.tensor, [5, 9, 200])[-1]
    assert np.abs(model.prefill(0, [5, 9, 200], 0) - exact).max() < 1e-4


@pytest.mark.parametrize(
    ("precision", "part", "named"),
    [
        (Precision.FP16, "layers.0.k", "layers.0.k"),
        (Precision.FP16, "embed", "embed"),
        *((precision, "layers.1.mlp_norm", "layers.1.mlp_norm") for precision in Precision),
        *((precision, "layers.2.up", "layers.2.gate_up") for precision in (Precision.INT8, Precision.INT4)),
    ],
)
def test_what_half_precision_cannot_hold_is_for_fp32_alone(
    tmp_path: Path, precision: Precision, part: str, named: str
) -> None:
    factor = 1e9 if named.endswith("gate_up") else 1e6
    source = ChangedSource(lambda name, values: values * np.float32(factor) if name == part else values)
    if precision is Precision.FP32:
        convert(source, tmp_path / "model", precision)
        return
    message = f"{named} is too large for half precision. Convert to fp32, for the CPU"
    with pytest.raises(ModelFormatError, match=message):
        convert(source, tmp_path / "model", precision)
    assert names(tmp_path) == []
