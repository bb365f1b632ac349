"""`check` where there is a GPU, or a driver that finds none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.describing.architecture import Precision
from tests.cuda_stubs.build import build, environment, missing_tools
from tests.engine.tiny_model import make_tiny_model

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools() or "the stubs can be built")


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cuda-stubs"))


def check(stubs: Path, folder: Path, gpu: str = "", **settings: str) -> tuple[int, str]:
    """Return the exit status and what `check` prints of a model."""
    environ = {**environment(stubs, gpu), "MODEL": str(folder / "model"), "COLUMNS": "300", **settings}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "bot", "check"],
        cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, " ".join(done.stdout.split())


def test_a_gpu_is_described_with_what_the_model_takes_of_it(stubs: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", Precision.INT8)
    _, printed = check(stubs, tmp_path)
    assert "✔ Provider: Stub GPU, 80 GiB, compute capability 9.0." in printed
    assert "one answer of 512 tokens need 1.5 GiB of the GPU's memory; 80.0 GiB are free" in printed
    assert "suits Stub GPU" in printed


def test_a_gpu_whose_memory_is_taken_is_a_problem(stubs: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", Precision.INT8)
    status, printed = check(stubs, tmp_path, "full")
    assert status == 1
    assert "✘ Memory: the model and one answer of 512 tokens need 1.5 GiB" in printed
    assert "it would run on the CPU" in printed


@pytest.mark.parametrize(("provider", "mark"), [("auto", "✔"), ("cuda", "✘")])
def test_a_driver_without_a_gpu_is_told(stubs: Path, tmp_path: Path, provider: str, mark: str) -> None:
    make_tiny_model(tmp_path / "model", Precision.INT8)
    status, printed = check(stubs, tmp_path, "none", PROVIDER=provider)
    assert status == (1 if provider == "cuda" else 0), printed
    assert f"{mark} Provider: " in printed
    assert "the NVIDIA driver finds no GPU" in printed


@pytest.mark.parametrize(("provider", "mark"), [("auto", "✔"), ("cuda", "✘")])
def test_a_model_for_the_cpu_alone_is_told(stubs: Path, tmp_path: Path, provider: str, mark: str) -> None:
    make_tiny_model(tmp_path / "model", Precision.FP32)
    _, printed = check(stubs, tmp_path, PROVIDER=provider)
    assert f"{mark} Provider: " in printed
    assert "this model only runs on the CPU: convert it again, to fp16, int8 or int4" in printed


def test_the_cpu_by_name_is_the_cpu(stubs: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", Precision.INT8)
    _, printed = check(stubs, tmp_path, PROVIDER="cpu")
    assert "✔ Provider: the CPU, with" in printed
    assert "GPU" not in printed
