"""Where the time of a step goes on the CPU, with ONNX Runtime's operators and with our own, by turns.

    python -m benchmarks.step_time --threads 2 --peak 1090
    python -m benchmarks.step_time --shape llama-3.2-1b --rounds 5

A decode step of 1, 8 and 16 conversations of 200 tokens each, and a prompt of 512 tokens. The step's time is
measured as it runs; what its operators take, by ONNX Runtime's profile of other runs. Beside it stands what
share of the processor's means the whole step uses: of what its int8 units can multiply, where `--peak` says
how much that is (multiplications an instruction * instructions a cycle * clock * threads, in thousand
millions a second), and of what its memory can be read at, which is measured.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime

from benchmarks.common import cache_folder, default_model, print_table
from benchmarks.random_gguf import random_folder
from engine import kernels
from engine.advising.measuring import memory_bandwidth
from engine.bench.figures import SHAPES
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Role, decoder_tensors
from engine.describing.footprint import step_bytes
from engine.describing.manifest import Manifest, load_manifest

CONTEXT_TOKENS, PROMPT_TOKENS = 200, 512
ROWS = (1, 8, 16)
PROFILED = 5
STEPS = (*(f"{num} row{'s' * (num > 1)}" for num in ROWS), f"prompt of {PROMPT_TOKENS}")
KINDS = {
    "products": {"BlockLinear", "MatMulNBits", "MatMul", "Gemm"},
    "attention": {"SlotAttention", "HalfSlotAttention", "GroupQueryAttention"},
    "norms": {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"},
}
Figures = dict[str, dict[str, float]]
"""Of each step: ms of a run as it is, as "step", and of each kind of operator as it is profiled."""


class _Profiling(onnxruntime.SessionOptions):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.enable_profiling = True
        self.profile_file_prefix = str(Path(tempfile.gettempdir()) / "llamacord-step")


def open_model(folder: Path, threads: int) -> CpuModel:
    """Load a model whose slots hold conversations of `CONTEXT_TOKENS`."""
    model = CpuModel(folder, load_manifest(folder), ModelOptions(threads, max(ROWS), PROMPT_TOKENS + 1))
    rng = np.random.default_rng(0)
    for array in model.kv.arrays:
        held = array[:, :, : CONTEXT_TOKENS + 1]
        held[:] = rng.standard_normal(held.shape, np.float32)
    return model


def works(model: CpuModel) -> list[Callable[[], object]]:
    """Return what makes each of `STEPS`."""
    ids = [300 + number for number in range(PROMPT_TOKENS)]
    steps: list[Callable[[], object]] = [
        lambda num=num: model.decode(0, ids[:num], [CONTEXT_TOKENS] * num)  # type: ignore[misc]
        for num in ROWS
    ]
    return [*steps, lambda: model.prefill(0, ids, 0)]


def measure(folder: Path, threads: int) -> Figures:
    """Measure each step with the operators that the environment asks for."""
    found: Figures = {}
    for name, work in zip(STEPS, works(open_model(folder, threads)), strict=True):
        repeats = 5 if name == STEPS[-1] else 40
        work()
        found[name] = {"step": statistics.median(_ms(work) for _ in range(repeats))}
    with patch.object(onnxruntime, "SessionOptions", _Profiling):
        model = open_model(folder, threads)
    for work in works(model):
        for _ in range(1 + PROFILED):  # the first is to warm up
            work()
    events = _events(Path(model._session.end_profiling()))
    runs = [event for event in events if event["name"] == "model_run"]
    nodes = [
        event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    for number, name in enumerate(STEPS):
        some = runs[number * (1 + PROFILED) + 1 : (number + 1) * (1 + PROFILED)]
        first, last = some[0]["ts"], some[-1]["ts"] + some[-1]["dur"]
        for node in nodes:
            if first <= node["ts"] < last:
                kind = _kind(node["args"]["op_name"])
                found[name][kind] = found[name].get(kind, 0.0) + node["dur"] / 1e3 / PROFILED
    return found


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def _events(file: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = sorted(json.loads(file.read_text()), key=lambda event: event["ts"])
    file.unlink()
    return events


def _kind(operator: str) -> str:
    return next((kind for kind, names in KINDS.items() if operator in names), "others")


def num_multiplications(manifest: Manifest, step: str) -> int:
    """Return how many a step's products take. Of a prompt, one row goes on behind the last attention."""
    config = manifest.decoder
    num = PROMPT_TOKENS if step == STEPS[-1] else int(step.split()[0])
    num_wanted = 1 if step == STEPS[-1] else num
    total = num_wanted * config.vocab_size * config.hidden_size
    for tensor in decoder_tensors(config):
        if tensor.role is Role.LINEAR:
            is_behind = (
                tensor.name.startswith(f"layers.{config.num_layers - 1}.") and "qkv" not in tensor.name
            )
            total += tensor.num_weights * (num_wanted if is_behind else num)
    return total


def in_process(folder: Path, threads: int, operators: str) -> tuple[Figures, float]:
    """Measure in a process of its own with these operators; also return a second's reading of memory."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.step_time",
        "--folder",
        str(folder),
        "--threads",
        str(threads),
    ]
    environment = {**os.environ, kernels.SWITCH: operators}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    figures, bandwidth = json.loads(done.stdout)
    return figures, bandwidth


def rows_of(
    name: str, rounds: list[tuple[Figures, float]], manifest: Manifest, peak: float
) -> list[list[str]]:
    """Return the table's rows for one kind of operators."""
    rows = []
    bandwidth = max(seen for _, seen in rounds)
    for step in STEPS:
        counted = collections.defaultdict[str, list[float]](list)
        for figures, _ in rounds:
            for kind, ms in figures[step].items():
                counted[kind].append(ms)
        medians = {kind: statistics.median(seen) for kind, seen in counted.items()}
        seconds = medians["step"] / 1e3
        rate = num_multiplications(manifest, step) / seconds / 1e9
        is_prompt = step == STEPS[-1]
        num = 1 if is_prompt else int(step.split()[0])
        held = {"num_tokens": 0 if is_prompt else CONTEXT_TOKENS, "num_conversations": num}
        read = step_bytes(manifest.decoder, manifest.precision, **held) / seconds
        rows.append(
            [step, name, f"{medians['step']:.1f}"]
            + [f"{medians.get(kind, 0.0):.1f}" for kind in (*KINDS, "others")]
            + [f"{rate:.0f}" + (f" ({rate / peak:.0%})" if peak else ""), f"{read / bandwidth:.0%}"]
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), help="of random weights, instead of the default model"
    )
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4, help="of a shape")
    parser.add_argument(
        "--peak", type=float, default=0.0, help="of the int8 units, in thousand millions a second"
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        print(json.dumps((measure(given.folder, given.threads), memory_bandwidth(given.threads))))
        return
    folder = default_model()
    if given.shape:
        folder = random_folder(cache_folder() / "benchmarks", given.shape, SHAPES[given.shape], given.bits)
    manifest = load_manifest(folder)
    measured: dict[str, list[tuple[Figures, float]]] = {"off": [], "": []}
    for _ in range(given.rounds):
        for operators, rounds in measured.items():
            rounds.append(in_process(folder, given.threads, operators))
    names = {"off": "ONNX's", "": "ours"}
    tables = [
        rows_of(names[operators], rounds, manifest, given.peak) for operators, rounds in measured.items()
    ]
    rows = [row for pair in zip(*tables, strict=True) for row in pair]
    columns = ["ms", "operators", "step", *KINDS, "others", "10^9 multiplications/s", "of memory's rate"]
    print_table(f"A step of {manifest.name}, {given.threads} threads, {given.rounds} rounds", columns, rows)


if __name__ == "__main__":
    main()
