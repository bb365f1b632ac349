"""Released models for tests: the exported ones beside the tests, copies to spoil, and the published loop."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from engine.release_embeddings import read_embeddings
from engine.release_files import find_release

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


class PublishedLoop:
    """Generates greedily as the published example does: all in and out through numpy, at every step."""

    def __init__(self, folder: Path, num_threads: int = 1) -> None:
        files = find_release(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(
            str(files.graph), options, providers=["CPUExecutionProvider"]
        )
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._embeddings = read_embeddings(files.embeddings)
        self._type = self._embeddings.dtype
        _, layers, _, heads, dim = shapes["k_cache"]
        self._cache_shape = (1, layers, shapes["attn_mask"][1], heads, dim)
        self._mask = (-10000.0 * np.triu(np.ones(shapes["attn_mask"]), 1)).astype(self._type)
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._keys = np.zeros(self._cache_shape, self._type)
        self._values = np.zeros(self._cache_shape, self._type)
        self.position = 0

    def feed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Compute tokens after what was fed before; return the last one's logits."""
        start, end = self.position, self.position + len(ids)
        logits, keys, values = self._session.run(
            None,
            {
                "x": self._embeddings[list(ids)][None],
                "attn_mask": self._mask,
                "k_cache": self._keys[:, :, :start],
                "v_cache": self._values[:, :, :start],
                "pos": np.array(start),
            },
        )
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self.position = end
        return np.asarray(logits[0], np.float32)

    def generate(self, ids: Sequence[int], num_new: int, eos_id: int | None = 2) -> list[int]:
        """Return the ids that follow greedily, EOS included."""
        self.forget()
        new: list[int] = []
        pending = list(ids)
        while len(new) < num_new and (not new or new[-1] != eos_id):
            pending = [int(self.feed(pending).argmax())]
            new += pending
        return new
