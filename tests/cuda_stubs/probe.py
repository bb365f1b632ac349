"""What ONNX Runtime makes of a converted model where it believes in a GPU; runs in a process of its own.

python -m tests.cuda_stubs.probe placement FOLDER: which nodes do not go to the GPU, as JSON
python -m tests.cuda_stubs.probe run FOLDER: loads and runs it as the engine does, counts captures
python -m tests.cuda_stubs.probe engine FOLDER: opens the engine, generates, and says on what
"""

from __future__ import annotations

import asyncio
import collections
import ctypes
import dataclasses
import json
import logging
import sys
from pathlib import Path

import onnxruntime

from engine.describing.manifest import load_manifest
from engine.engine import Engine, EngineOptions
from engine.gpu.loading import Attention, load_paged_model
from engine.gpu.step import GREEDY, PagedRow
from engine.graphs.decoder import paged_graph
from engine.runtime.model_folder import RunnerSize
from engine.runtime.sampling import device_row_of
from engine.types import Prompt, SamplingParams
from tests.cuda_stubs.build import STATE


def placement(folder: Path) -> dict[str, object]:
    """Return the operators by where they go, and whether a session without any way to the CPU loads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("ep.cuda.fpa_intb_gemm", "1")
    providers = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    graph = paged_graph(load_manifest(folder), 512)
    session = onnxruntime.InferenceSession(graph, options, providers=providers)
    placed: dict[str, dict[str, int]] = {}
    for part in session.get_provider_graph_assignment_info():
        kinds = placed.setdefault(part.ep_name, collections.Counter())
        for node in part.get_nodes():
            kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
    return {"placed": placed, "providers": session.get_providers()}


def run(folder: Path) -> dict[str, object]:
    """Run the model as the engine does: prompts, mixed steps, decode steps, and steps ahead."""
    manifest = dataclasses.replace(load_manifest(folder), reference=None)
    size = RunnerSize(1, 8, 512, 0, unpenalised=frozenset({0, 1}))
    model = load_paged_model(folder, manifest, size, Attention.PAGED)
    warm, launched = _count("captures"), _count("launches")
    prompt = PagedRow(tuple(range(40)), 0, (1, 2), 0, GREEDY)
    sampling = device_row_of(SamplingParams(), 0.5)
    answers = [PagedRow((5,), 40, (3 + i, 20 + i), i, sampling) for i in range(1, 7)]
    model.saw(1, [3, 4])
    sizes = [len(model.run([prompt])), len(model.run([*answers, prompt])), len(model.run(answers))]
    sizes.append(len(model.follow([*answers[:-1], None]).result()))
    model.close()
    later = {"captured_later": _count("captures") - warm, "replayed": _count("launches") - launched}
    return {"rows": sizes, "blocks": model.num_blocks, "captured": warm, **later}


async def engine(folder: Path) -> dict[str, object]:
    """Open the engine on the best there is; return where it runs and what it logged."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("engine").addHandler(handler)
    logging.getLogger("engine").setLevel(logging.INFO)
    async with await Engine.open(folder, EngineOptions(num_threads=1, max_concurrent=2)) as opened:
        generation = opened.generate(Prompt((3, 4, 5)), SamplingParams(max_new_tokens=3, temperature=0.0))
        text = [piece async for piece in generation]
        return {"device": opened.info.provider, "log": lines, "pieces": len(text)}


def _count(what: str) -> int:
    """Return how many "captures" or "launches" of graphs the stubs have seen."""
    return int(getattr(ctypes.CDLL(STATE), f"llamacord_stub_{what}")())


def main() -> None:
    """Print what was asked for as JSON."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "engine":
        found = asyncio.run(engine(folder))
    else:
        found = {"placement": placement, "run": run}[what](folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
