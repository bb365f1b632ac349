"""What the model refuses: arguments that would end the process, and damaged folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import pytest

from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision
from engine.describing.manifest import WEIGHTS_FILE, load_manifest
from engine.errors import ModelFormatError
from tests.engine.tiny_model import VOCAB_SIZE, make_tiny_model


def _refuse_to_run(*_: object) -> None:
    pytest.fail("A bad argument reached ONNX Runtime.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return make_tiny_model(tmp_path / "model", Precision.INT8)


@pytest.fixture
def guarded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> CpuModel:
    """A model of two slots and 64 tokens whose session must not run."""
    model = open_model(folder)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", _refuse_to_run)
    return model


def open_model(folder: Path, max_tokens: int = 64) -> CpuModel:
    return CpuModel(folder, load_manifest(folder), ModelOptions(1, 2, max_tokens))


BAD_PREFILLS: dict[str, tuple[int, Sequence[int], int]] = {
    "no ids": (0, [], 0),
    "too long": (0, [1] * 65, 0),
    "too long after a past": (0, [1] * 10, 55),
    "negative past": (0, [1], -1),
    "negative id": (0, [1, -1], 0),
    "id outside the vocabulary": (0, [1, VOCAB_SIZE], 0),
    "slot outside the cache": (2, [1], 0),
    "negative slot": (-1, [1], 0),
}


@pytest.mark.parametrize("call", BAD_PREFILLS.values(), ids=BAD_PREFILLS)
def test_bad_prefills_never_reach_onnx_runtime(
    guarded: CpuModel, call: tuple[int, Sequence[int], int]
) -> None:
    for method in (guarded.prefill, guarded.score):
        with pytest.raises(ValueError, match=r"\w"):
            method(*call)


BAD_DECODES: dict[str, tuple[int, Sequence[int], Sequence[int]]] = {
    "no rows": (0, [], []),
    "lengths of another number": (0, [1, 1], [3]),
    "negative length": (0, [1], [-1]),
    "too long": (0, [1, 1], [3, 65]),
    "negative id": (0, [1, -1], [3, 3]),
    "id outside the vocabulary": (0, [VOCAB_SIZE], [3]),
    "more rows than slots": (0, [1, 1, 1], [3, 3, 3]),
    "window past the end": (1, [1, 1], [3, 3]),
    "negative slot": (-1, [1], [3]),
}


@pytest.mark.parametrize("call", BAD_DECODES.values(), ids=BAD_DECODES)
def test_bad_decodes_never_reach_onnx_runtime(
    guarded: CpuModel, call: tuple[int, Sequence[int], Sequence[int]]
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        guarded.decode(*call)


def test_a_context_longer_than_the_models_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="512 tokens at most"):
        open_model(folder, max_tokens=513)


def test_missing_weights_are_reported(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelFormatError, match=f"{folder} could not be loaded"):
        open_model(folder)


def test_truncated_weights_are_reported(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelFormatError, match="could not be loaded"):
        open_model(folder)
