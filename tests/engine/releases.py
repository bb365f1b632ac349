"""Released models for tests: the exported ones beside the tests, and copies to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

RELEASES = Path(__file__).parents[1] / "data/releases"
KINDS = ("float32", "float16")


def release(kind: str = "float32") -> Path:
    """Return the folder of an exported model; nobody writes to it."""
    return RELEASES / f"tiny_FT_{kind}"


def copy_release(parent: Path, kind: str = "float32", name: str = "") -> Path:
    """Copy an exported model and its tokenizer into `parent`, to spoil it; return its folder."""
    folder = parent / (name or f"tiny_FT_{kind}")
    shutil.copytree(release(kind), folder)
    shutil.copyfile(RELEASES / "tokenizer.model", parent / "tokenizer.model")
    if name:
        graph_of(folder).rename(folder / "ONNX" / f"LlamaV2_{name}.onnx")
    return folder


def graph_of(folder: Path) -> Path:
    """Return the graph of a release."""
    return next((folder / "ONNX").glob("*.onnx"))


def tamper(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change a release's graph in place."""
    model = onnx.load(str(graph_of(folder)), load_external_data=False)
    change(model)
    graph_of(folder).write_bytes(model.SerializeToString())


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """Return a node by its name."""
    return next(node for node in model.graph.node if node.name == name)
