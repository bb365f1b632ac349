"""Reads tensors out of one safetensors file, a copy of one at a time. Trusts nothing that the file says.

The format is 8 bytes with the length of a JSON header, the header, and the tensors' bytes. Read here because
numpy has no bfloat16, which the library's numpy side needs; plain reads keep what was read out of this
process's memory, as a mapped file would not.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.convert.source import SourceTensor
from engine.errors import ModelFormatError
from engine.files import read_json, refuse_pointer

_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_STORED_AS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SafetensorsFile:
    """The header of one file. Raises `ModelFormatError` unless header and size agree."""

    def __init__(self, path: Path) -> None:
        self._path = path
        refuse_pointer(path)
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                start = 8 + int.from_bytes(file.read(8), "little")
                header = file.read(start - 8) if 8 < start <= min(size, _MAX_HEADER_BYTES) else b""
        except FileNotFoundError:
            raise ModelFormatError(
                f"{path.name} is missing from {path.parent}. Download the model again."
            ) from None
        except OSError as error:
            raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
        try:
            described = json.loads(header)
            described.pop("__metadata__", None)
            self._entries = {name: _entry(raw, start, size) for name, raw in described.items()}
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ModelFormatError(
                f"{path} is not a readable safetensors file; it may be truncated. Get it again."
            ) from error

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the file's tensors."""
        return frozenset(self._entries)

    def stored(self, name: str) -> SourceTensor:
        """Return what the header says of one of the file's tensors."""
        entry = self._entries[name]
        return SourceTensor(entry.kind, entry.shape, entry.num_bytes)

    def read(self, name: str, rows: range | None = None) -> npt.NDArray[np.float32]:
        """Return one of the file's tensors, or some of its rows, as float32. Raises `ModelFormatError`."""
        entry = self._entries[name]
        if entry.kind not in _STORED_AS:
            raise ModelFormatError(
                f"{self._path} stores {name} as {entry.kind}, which is not supported. "
                "Get the model in float32, float16 or bfloat16."
            )
        shape, offset = entry.shape, entry.offset
        if rows is not None:
            if not shape or rows.stop > shape[0]:
                raise ModelFormatError(f"{self._path} has {name} in the shape {shape}: rows are missing.")
            offset += rows.start * math.prod(shape[1:]) * _STORED_AS[entry.kind].itemsize
            shape = (len(rows), *shape[1:])
        num_values = math.prod(shape)
        try:
            values = np.fromfile(self._path, _STORED_AS[entry.kind], num_values, offset=offset)
        except OSError as error:
            raise ModelFormatError(f"{self._path} cannot be read: {error.strerror}.") from error
        if len(values) != num_values:
            raise ModelFormatError(f"{self._path} was changed while it was read.")
        if entry.kind == "BF16":  # the upper half of a float32
            values = np.left_shift(values, 16, dtype=np.uint32).view(np.float32)
        return np.asarray(values, np.float32).reshape(shape)


def _entry(raw: dict[str, Any], start: int, size: int) -> _Entry:
    """Raises whatever a wrong value leads to."""
    kind, shape, (begin, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
    numbers = (*shape, begin, end)
    if any(type(number) is not int or number < 0 for number in numbers) or not isinstance(kind, str):
        raise ValueError("a shape or an offset is no number")
    stored = _STORED_AS.get(kind)
    if not begin <= end <= size - start or (stored and math.prod(shape) * stored.itemsize != end - begin):
        raise ValueError("a tensor is not where the header has it")
    return _Entry(kind, shape, start + begin, end - begin)


INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class SafetensorsFolder:
    """Knows which file holds which tensor. Raises `ModelFormatError` for missing or damaged files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, SafetensorsFile] = {}
        for path in _files(folder):
            file = SafetensorsFile(path)
            twice = sorted(file.names & self._files.keys())
            if twice:
                raise ModelFormatError(f"The safetensors files in {folder} hold {twice[0]} twice.")
            self._files.update(dict.fromkeys(file.names, file))

    @property
    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return frozenset(self._files)

    def stored(self, name: str) -> SourceTensor:
        """Return what is known of one of `names` without reading it."""
        return self._files[name].stored(name)

    def read(self, name: str, rows: range | None = None) -> npt.NDArray[np.float32]:
        """Return one tensor, or some of its rows, as float32. Raises `ModelFormatError`."""
        if name not in self._files:
            raise ModelFormatError(f"{self._folder} has no tensor {name}.")
        return self._files[name].read(name, rows)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.exists():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelFormatError(f"{index} does not say which file holds which tensor.")
        return [_beside(index, name) for name in sorted(set(map(str, places.values())))]
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
        only = f", only {pickles[0]}, a pickle that may run any code when it is opened" if pickles else ""
        raise ModelFormatError(
            f"{folder} has no safetensors files{only}. Get the model in the safetensors format."
        )
    return found


def _beside(index: Path, name: str) -> Path:
    """Return the path of a file that an index names, which must lie in the same folder.

    It may well be a link that leads out of it: Hugging Face's cache is made of such.
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise ModelFormatError(f"{index} names the file {name!r}, which is not a plain file name.")
    return index.parent / name
