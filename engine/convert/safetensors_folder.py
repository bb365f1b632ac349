"""The safetensors files of a folder as one model: a single file, or the shards that an index names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.convert.json_file import read_json
from engine.convert.safetensors_file import SafetensorsFile
from engine.convert.stored_tensors import StoredTensor
from engine.errors import ModelFormatError

_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"


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

    def stored(self, name: str) -> StoredTensor:
        """Return what is known of one of `names` without reading it."""
        return self._files[name].stored(name)

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return one tensor as float32. Raises `ModelFormatError`."""
        if name not in self._files:
            raise ModelFormatError(f"{self._folder} has no tensor {name}.")
        return self._files[name].read(name)


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX_FILE
    if index.exists():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelFormatError(f"{index} does not say which file holds which tensor.")
        return [_beside(index, name) for name in sorted(set(map(str, places.values())))]
    if (folder / _SINGLE_FILE).exists():
        return [folder / _SINGLE_FILE]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        only = f"; {pickles[0]} cannot be read safely" if pickles else ""
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
