"""Measures each side in a process of its own, so that memory and device are free for the next one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.architecture import DecoderConfig
from engine.bench.bandwidth import device_bandwidth
from engine.bench.driving import measure_engine
from engine.bench.figures import Figures, Plan, figures_from, figures_json, plan_from
from engine.bench.peers import measure_genai, measure_loop
from engine.errors import EngineError, ModelResourceError


def run_engine(plan: Plan) -> Figures:
    """Measure the engine. Raises `ModelResourceError` with the process's own reason."""
    return figures_from(_run("engine", {"plan": asdict(plan)}))


def run_loop(plan: Plan, config: DecoderConfig) -> Figures:
    """Measure the published loop. Raises `ModelResourceError`."""
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
        return figures_json(measure_loop(plan, DecoderConfig(**work["config"])))
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
