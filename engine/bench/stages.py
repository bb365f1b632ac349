"""Measures each side in a process of its own, so that memory and device are free for the next one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper

from engine.advising.measuring import memory_bandwidth
from engine.bench.driving import measure_engine
from engine.bench.figures import Figures, Plan, figures_from, figures_json, plan_from
from engine.bench.peers import measure_genai, measure_loop
from engine.describing.architecture import DecoderConfig
from engine.errors import EngineError, ModelResourceError
from engine.files import from_json
from engine.graphs.session import open_session
from engine.machine import machine


def copy_graph(kind: type[np.generic]) -> bytes:
    """Return the graph: `copied` [n] is `values` [n] with the other sign."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    values = [helper.make_tensor_value_info(name, element, ["n"]) for name in ("values", "copied")]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["values"], ["copied"])], "copy", values[:1], values[1:]
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="llamacord")
    data: bytes = model.SerializeToString()
    return data


def run_engine(plan: Plan) -> Figures:
    """Measure the engine. Raises `ModelResourceError` with the process's own reason."""
    return figures_from(_run("engine", {"plan": asdict(plan)}))


def run_loop(plan: Plan, config: DecoderConfig) -> Figures:
    """Measure the published loop. Raises `ModelResourceError`, also for what is no Llama 2."""
    if config.beyond_llama_2:
        raise ModelResourceError("The published loop only runs models like Llama 2.")
    return figures_from(_run("loop", {"plan": asdict(plan), "config": asdict(config)}))


def run_genai(plan: Plan, folder: Path) -> Figures:
    """Measure onnxruntime-genai. Raises `ModelResourceError`."""
    return figures_from(_run("genai", {"plan": asdict(plan), "folder": str(folder)}))


def run_bandwidth(device: str, threads: int) -> float:
    """Measure the device's memory. Raises `ModelResourceError`."""
    return float(_run("bandwidth", {"device": device, "threads": threads})["bytes_per_s"])


def act(stage: str, work: dict[str, Any]) -> dict[str, Any]:
    """Do what this process was started for. Raises `EngineError`."""
    if stage == "bandwidth":
        return {"bytes_per_s": device_bandwidth(work["device"], work["threads"])}
    plan = plan_from(work["plan"])
    if stage == "engine":
        return figures_json(asyncio.run(measure_engine(plan)))
    if stage == "loop":
        return figures_json(measure_loop(plan, from_json(DecoderConfig, work["config"], "config")))
    return figures_json(measure_genai(plan, Path(work["folder"])))


def main() -> None:
    """Read the work from the arguments, print its result on the last line."""
    try:
        result = act(sys.argv[1], json.loads(sys.argv[2]))
    except EngineError as error:
        result = {"error": str(error)}
    print(f"\n{json.dumps(result)}", flush=True)


def _run(stage: str, work: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "engine.bench", stage, json.dumps(work)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own
    try:
        result: dict[str, Any] = json.loads((process.stdout.splitlines() or [""])[-1])
    except ValueError:
        raise ModelResourceError(
            f"The process that measured ({stage}) ended with status {process.returncode} and no result."
        ) from None
    if "error" in result:
        raise ModelResourceError(result["error"])
    return result


_NUM_BYTES = 2**30
_NUM_WARM, _NUM_TIMED = 3, 10


def device_bandwidth(device: str, num_threads: int = 0) -> float:
    """Return the bytes a second that a copy on "cuda" moves, or that the CPU's threads read.

    Raises `ModelError` where the device cannot be used.
    """
    if device == "cpu":
        return memory_bandwidth(num_threads or machine.num_physical_cores())
    return copy_bandwidth(device)


def copy_bandwidth(
    device: str, num_bytes: int = _NUM_BYTES, kind: type[np.generic] = np.float16, num_threads: int = 1
) -> float:
    """Return the bytes a second, read and written, of a copy of `num_bytes` that stays on `device`.

    `kind` must be a type that the device can change the sign of: the CPU has no float16.
    """
    session = open_session(copy_graph(kind), num_threads, device)
    binding = session.io_binding()
    shape = [num_bytes // np.dtype(kind).itemsize]
    values = [onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0) for _ in range(2)]
    binding.bind_ortvalue_input("values", values[0])
    binding.bind_ortvalue_output("copied", values[1])

    def copy() -> float:
        started = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return time.perf_counter() - started

    for _ in range(_NUM_WARM):
        copy()
    return 2 * num_bytes / min(copy() for _ in range(_NUM_TIMED))
