"""The memory that `check` states is what the process takes when all of it is in use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.bench.figures import SHAPES
from engine.bench.random_model import write_random_model
from engine.describing.architecture import DecoderConfig, Precision

WIDE = DecoderConfig(2, 1024, 12288, 16, 2, 64, 4096, 2048, 1e4, 1e-5, tied_embeddings=False)
"""The largest step takes much beside the weights."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="how much is taken cannot be told here")
@pytest.mark.parametrize(
    ("shape", "precision", "kv_mb"),
    [
        (SHAPES["default"], Precision.INT4, 320),
        (SHAPES["1.1b"], Precision.INT4, 64),
        (SHAPES["default"], Precision.FP16, 64),
        (WIDE, Precision.FP16, 16),
    ],
    ids=["default int4", "1.1b int4", "default fp16", "wide fp16"],
)
def test_filled_to_its_limit_the_process_takes_what_was_stated(
    tmp_path: Path, shape: DecoderConfig, precision: Precision, kv_mb: int
) -> None:
    folder = write_random_model(tmp_path / "model", shape, precision)
    command = [sys.executable, "-m", "tests.bot.memory_probe", str(folder), str(kv_mb), "640"]
    ran = subprocess.run(command, capture_output=True, check=True, timeout=600)  # noqa: S603 - our own program
    figures = json.loads(ran.stdout)
    assert figures["share"] > 0.97, "as much KV is held as may be"
    assert figures["most"] == pytest.approx(figures["stated"], rel=0.03)
    assert figures["left"] < figures["most"] - 0.8 * figures["kv"], "what is forgotten is given back"
