"""The GPU's path without a GPU: where ONNX Runtime places each node, what it captures, what it falls back to.

CUDA's libraries are stubs whose kernels do nothing (`tests/cuda_stubs`); all of ONNX Runtime's own code runs.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.convert.converter import convert, open_source
from engine.describing.architecture import Precision
from tests.cuda_stubs.build import STATE, build, environment, missing_tools
from tests.engine.paged_cpu import GPU_SIZED
from tests.engine.tiny_families import TinyFamily
from tests.engine.tiny_model import TinySource

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools() or "the stubs can be built")

ON_GPU = (Precision.FP16, Precision.INT8, Precision.INT4)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cuda-stubs"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of models whose dimensions the GPU's operators take, by precision."""
    parent = tmp_path_factory.mktemp("gpu-models")
    for precision in Precision:
        config = dataclasses.replace(
            GPU_SIZED, context_length=512, tied_embeddings=precision is not Precision.FP16
        )
        convert(TinySource(config), parent / precision, precision)
    return parent


def probe(stubs: Path, what: str, folder: Path, gpu: str = "") -> dict[str, Any]:
    """Return what `tests.cuda_stubs.probe` finds with that GPU."""
    command = [sys.executable, "-m", "tests.cuda_stubs.probe", what, str(folder)]
    done = subprocess.run(  # noqa: S603
        command,
        cwd=ROOT,
        env=environment(stubs, gpu),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("precision", ON_GPU)
def test_every_node_is_placed_on_the_gpu(stubs: Path, folders: Path, precision: Precision) -> None:
    found = probe(stubs, "placement", folders / precision)
    assert list(found["placed"]) == ["CUDAExecutionProvider"]
    kinds = found["placed"]["CUDAExecutionProvider"]
    assert kinds["PagedAttention"] == 2
    assert kinds["TopK"] == kinds["ScatterND"] == 1
    assert not any(kind.startswith("Memcpy") for kind in kinds)
    assert kinds["Cast"] < 10, "those of logits and sampler: weights are cast once, when they are loaded"
    assert kinds.get("MatMulNBits", 0) == (0 if precision is Precision.FP16 else 4 * 2 + 1)


SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_hidden_layers": 2,
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-biases", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma-2", {}),
        ("gemma-3", {}),
        ("phi-3", {"rope_scaling": None}),
        ("smollm3", {"no_rope_layers": [1, 0]}),
        ("olmo-2", {}),
        ("granite", {}),
    ],
)
def test_every_node_of_every_family_is_placed_on_the_gpu(
    stubs: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    family = TinyFamily(name)
    family.config |= SIZES | changes
    convert(open_source(family.save(tmp_path / "source")), tmp_path / "model", Precision.INT8)
    found = probe(stubs, "placement", tmp_path / "model")
    assert list(found["placed"]) == ["CUDAExecutionProvider"]
    kinds = found["placed"]["CUDAExecutionProvider"]
    assert kinds["PagedAttention"] == 2
    assert not any(kind.startswith("Memcpy") for kind in kinds)
    if name in ("gemma-2", "gemma-3", "smollm3", "olmo-2"):  # operators that no other test has run
        ran = probe(stubs, "run", tmp_path / "model")
        assert (ran["rows"], ran["captured"], ran["captured_later"]) == ([1, 7, 6, 6], 6, 0)


@pytest.mark.parametrize("precision", ON_GPU)
def test_decode_steps_are_captured_at_the_start_and_only_there(
    stubs: Path, folders: Path, precision: Precision
) -> None:
    found = probe(stubs, "run", folders / precision)
    assert found["rows"] == [1, 7, 6, 6]
    assert found["captured"] == 6, "buckets of 1, 2, 4, 8, 12 and 16 rows, of one table width"
    assert found["captured_later"] == 0
    assert found["replayed"] == 2, (
        "a step of six rows, and the one after it; steps with prompts run as they are"
    )
    assert found["blocks"] == 1 + 2 * 8 * 2, "two contexts for each of eight answers"


def test_a_gpu_that_computes_nonsense_is_not_used(stubs: Path, folders: Path) -> None:
    found = probe(stubs, "engine", folders / "int4")
    assert found["device"] == "cpu"
    assert found["pieces"] > 0
    log = "\n".join(found["log"])
    assert "Found Stub GPU, 80 GiB, compute capability 9.0." in log
    assert "Paged attention does not work on Stub GPU: It computes no numbers." in log
    assert "Plain attention does not work on Stub GPU: It computes no numbers." in log
    assert "The model runs on the CPU: It computes no numbers." in log


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        ("none", "The model runs on the CPU: the NVIDIA driver finds no GPU"),
        ("old_driver", "supports CUDA 12.4, and 13.0 is needed: update the driver"),
        ("turing", "Plain attention does not work on Stub GPU"),
        ("full", "The model runs on the CPU: "),
    ],
)
def test_without_a_usable_gpu_the_cpu_answers_and_the_log_says_why(
    stubs: Path, folders: Path, gpu: str, reason: str
) -> None:
    found = probe(stubs, "engine", folders / "int8", gpu)
    assert found["device"] == "cpu"
    assert found["pieces"] > 0
    log = "\n".join(found["log"])
    assert reason in log
    assert "Paged attention" not in log or gpu == "full"


def test_single_precision_is_for_the_cpu_and_the_log_says_so(stubs: Path, folders: Path) -> None:
    found = probe(stubs, "engine", folders / "fp32")
    assert found["device"] == "cpu"
    assert "only runs on the CPU" in "\n".join(found["log"])


def test_without_cudas_libraries_the_log_says_how_to_install_them(
    stubs: Path, folders: Path, tmp_path: Path
) -> None:
    for name in ("libcuda.so.1", STATE):  # a driver alone
        shutil.copy(stubs / name, tmp_path)
    found = probe(tmp_path, "engine", folders / "int8")
    assert found["device"] == "cpu"
    assert "pip install 'onnxruntime-gpu[cuda]==1.31.1' 'nvidia-cublas>=13,<14'" in "\n".join(found["log"])
