"""Which files make up a released Llama-2-Onnx model, and what their names tell.

    tokenizer.model
    7B_FT_float16/embeddings.pth
    7B_FT_float16/ONNX/LlamaV2_7B_FT_float16.onnx    and a file for each tensor beside it

Knows the layout only, not what is in the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelFormatError
from engine.files import refuse_pointer

_EMBEDDINGS, _TOKENIZER = "embeddings.pth", "tokenizer.model"


@dataclass(frozen=True, slots=True)
class ReleaseFiles:
    """A release's graph, embeddings and tokenizer."""

    graph: Path
    embeddings: Path
    tokenizer: Path

    @property
    def name(self) -> str:
        return self.graph.stem

    @property
    def folder(self) -> Path:
        """Return the folder that a user would name: the one above `ONNX`."""
        parent = self.graph.absolute().parent
        return parent.parent if parent.name == "ONNX" else parent

    @property
    def is_fine_tuned(self) -> bool:
        """Return whether the names say that it was trained to chat."""
        return any("FT" in re.split(r"[^A-Za-z0-9]", name) for name in (self.name, self.folder.name))

    @property
    def num_bytes(self) -> int:
        """Return the size of the graph with its tensors and embeddings."""
        paths = [self.embeddings, *self.graph.parent.iterdir()]
        return sum(path.stat().st_size for path in paths if path.is_file())


def is_release(path: Path) -> bool:
    """Return whether `path` looks like a release: its folder, the folder `ONNX`, or the graph itself."""
    return path.suffix == ".onnx" if path.is_file() else bool(_graphs(path))


def find_release(path: Path) -> ReleaseFiles:
    """Return the files of the release at `path`. Raises `ModelFormatError` when one is missing or no file."""
    graphs = [path] if path.is_file() else _graphs(path)
    if not graphs:
        raise ModelFormatError(f"{path} has no ONNX/*.onnx: it is no released Llama-2-Onnx model.")
    if len(graphs) > 1:
        raise ModelFormatError(f"{path} has several .onnx files. Name the one you mean.")
    graph = graphs[0]
    folder = graph.absolute().parent
    around = [folder, folder.parent, folder.parent.parent]
    files = ReleaseFiles(graph, _first(_EMBEDDINGS, around[:2]), _first(_TOKENIZER, around))
    for file in (files.graph, files.embeddings, files.tokenizer):
        require_file(file)
    return files


def require_file(path: Path) -> None:
    """Raise `ModelFormatError` when `path` is missing, unreadable or a Git LFS pointer."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise ModelFormatError(f"The file {path} is missing. Fetch the model again.") from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    refuse_pointer(path)


def _graphs(folder: Path) -> list[Path]:
    """Return the graphs of a folder; the `decoder.onnx` that older versions converted to is none."""
    return sorted(folder.glob("ONNX/*.onnx")) or (sorted(folder.glob("*.onnx")) * (folder.name == "ONNX"))


def _first(name: str, folders: list[Path]) -> Path:
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    places = " or ".join(str(folder) for folder in folders)
    raise ModelFormatError(f"{name} is missing: it belongs into {places}.")
