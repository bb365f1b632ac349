"""Which files make up a released Llama-2-Onnx model, what their names tell, and the embeddings.

    tokenizer.model
    7B_FT_float16/embeddings.pth
    7B_FT_float16/ONNX/LlamaV2_7B_FT_float16.onnx    and a file for each tensor beside it

The embeddings are read without torch, and without running what a pickle may hold. torch.save writes a zip
archive: `data.pkl` describes the tensors, `data/0` … are their bytes. A pickle is a program. The one that
describes a state dict calls three things, which are replaced here by inert stand-ins; any other name in it is
refused before anything is called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import ModelFormatError
from engine.files import refuse_pointer

_EMBEDDINGS, _TOKENIZER = "embeddings.pth", "tokenizer.model"
_EMBEDDINGS, _TOKENIZER = "embeddings.pth", "tokenizer.model"
Embedding = npt.NDArray[np.float32] | npt.NDArray[np.float16]
_MAX_PICKLE_BYTES = 2**16
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TYPES: dict[str, type[np.generic]] = {"FloatStorage": np.float32, "HalfStorage": np.float16}


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


def read_embeddings(path: Path) -> Embedding:
    """Return the one tensor `weight` [vocab, hidden]. Raises `ModelFormatError`."""
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except ModelFormatError:
        raise
    except zipfile.BadZipFile as error:
        raise ModelFormatError(_not_zip(path)) from error
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # whatever a damaged archive or pickle raises
        raise ModelFormatError(f"{path} is damaged: it holds no table of embeddings.") from error


def _graphs(folder: Path) -> list[Path]:
    """Return the graphs of a folder; the `decoder.onnx` that older versions converted to is none."""
    return sorted(folder.glob("ONNX/*.onnx")) or (sorted(folder.glob("*.onnx")) * (folder.name == "ONNX"))


def _first(name: str, folders: list[Path]) -> Path:
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    places = " or ".join(str(folder) for folder in folders)
    raise ModelFormatError(f"{name} is missing: it belongs into {places}.")


def _read(archive: zipfile.ZipFile, path: Path) -> Embedding:
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ModelFormatError(f"{path} was not written by torch.save: it has no data.pkl.")
    root = pickles[0].split("/")[0]
    if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
        raise ModelFormatError(f"{path} describes more than one tensor; it should hold only `weight`.")
    if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
        raise ModelFormatError(f"{path} was written on a big-endian machine, which is not supported.")
    tensor = _weight(_StateDictReader(archive.read(pickles[0]), path).load(), path)
    member = f"{root}/data/{tensor.storage.key}"
    if archive.getinfo(member).file_size != tensor.storage.size * np.dtype(tensor.storage.kind).itemsize:
        raise ModelFormatError(f"{path} is damaged: its table doesn't have the size it should.")
    values = np.frombuffer(archive.read(member), tensor.storage.kind)
    count = tensor.shape[0] * tensor.shape[1]
    table: Embedding = values[tensor.offset : tensor.offset + count].reshape(tensor.shape)
    return table


def _weight(state: object, path: Path) -> _Tensor:
    """Return the tensor of a state dict that has the one key `weight`, a matrix stored row by row."""
    if not isinstance(state, dict) or list(state) != ["weight"] or not isinstance(state["weight"], _Tensor):
        raise ModelFormatError(f"{path} is not a state dict with the one key `weight`.")
    tensor: _Tensor = state["weight"]
    if len(tensor.shape) != 2 or tensor.strides != (tensor.shape[1], 1):
        raise ModelFormatError(f"{path} holds no plain matrix, but a tensor of the shape {tensor.shape}.")
    if min(tensor.shape) < 1 or not 0 <= tensor.offset <= tensor.storage.size - np.prod(tensor.shape):
        raise ModelFormatError(f"{path} is damaged: its table is larger than what is stored of it.")
    return tensor


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    kind: type[np.generic]
    size: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDict(dict[str, object]):
    """What stands in for an OrderedDict: may be given attributes, as a module's state dict has them."""


class _StateDictReader(pickle.Unpickler):
    """Reads the pickle of a state dict; knows the names that torch.save uses for one, and no others."""

    def __init__(self, data: bytes, path: Path) -> None:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "LONG_BINPUT" and isinstance(argument, int) and argument > len(data):
                raise ValueError("a memo with room for more than there is")
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        stand_ins: dict[tuple[str, str], Callable[..., object]] = {
            ("collections", "OrderedDict"): lambda *_: _StateDict(),
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            ),
        }
        if (module, name) in stand_ins:
            return stand_ins[module, name]
        if module == "torch" and name.endswith("Storage"):
            raise ModelFormatError(f"{self._path} stores {name}; float16 and float32 are supported.")
        raise ModelFormatError(
            f"{self._path} is not safe: reading it would call {module}.{name}. Fetch the file again "
            "from where the model was published."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, size = pid
        if kind != "storage" or not isinstance(key, str) or type(size) is not int or "/" in key:
            raise ModelFormatError(f"{self._path} is damaged: it refers to {kind!r}.")
        return _Storage(key, dtype, size)


def _not_zip(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LEGACY_MAGIC):
        return (
            f"{path} is in the old format of torch.save, which is not read here. Load it once with torch and "
            "save it again with a current version."
        )
    if start[257:262] == b"ustar":
        return f"{path} is a tar archive, a format torch no longer writes. Fetch the file again."
    return f"{path} is truncated or no file of torch.save. Fetch it again."
