"""A model at the hub without its weights: files of the right size that are empty where those would be.

So the readers of real files say, before anything large is fetched, what it is and what is wrong with it.
Only the beginnings are fetched, in which GGUF and safetensors files name their tensors, and the small
files beside them.
"""

from __future__ import annotations

from pathlib import Path

from engine.convert.gguf_header import IncompleteError, read_header
from engine.errors import ModelFormatError
from engine.hub.choice import Choice
from engine.hub.hub import Hub, Repository

_FIRST_LOOK = 2**20
_MOST_BYTES = 2**27
"""The largest vocabularies take 35 MB."""
_SMALL_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Numbers of a GGUF file that say how it computes, and are read when it is opened."""
_SMALL_TENSOR_BYTES = 2**14


def make_skeleton(hub: Hub, repository: Repository, choice: Choice, folder: Path) -> Path:
    """Write the skeleton into `folder` and return the path to open. Raises `ModelError` or `OSError`."""
    for name in choice.descriptions:
        _write(folder / name, hub.read(repository, name))
    for name in choice.weights:
        is_gguf = name.lower().endswith(".gguf")
        pieces = (_gguf if is_gguf else _safetensors)(hub, repository, name)
        path = folder / (Path(name).name if is_gguf else name)
        for start, content in pieces.items():
            _write(path, content, start)
        with path.open("ab") as file:
            file.truncate(repository.files[name].num_bytes)
    return folder if choice.is_folder else folder / Path(choice.opened).name


def _gguf(hub: Hub, repository: Repository, name: str) -> dict[int, bytes]:
    """Return the header of a GGUF file, and the small tensors that belong to it, by where they lie."""
    content = b""
    length = _FIRST_LOOK
    while True:
        content += hub.read(repository, name, length - len(content), len(content))
        try:
            header = read_header(content)
            break
        except IncompleteError:
            if len(content) < length or length >= _MOST_BYTES:
                raise ModelFormatError(f"{name} in {repository.name} is not a whole GGUF file.") from None
            length *= 4
        except ValueError:
            raise ModelFormatError(f"{name} in {repository.name} is not a GGUF file.") from None
    pieces = {0: content}
    for tensor in _SMALL_TENSORS:
        place = header.places.get(tensor)
        if place is not None and place + _SMALL_TENSOR_BYTES > len(content):
            pieces[place] = hub.read(repository, name, _SMALL_TENSOR_BYTES, place)
    return pieces


def _safetensors(hub: Hub, repository: Repository, name: str) -> dict[int, bytes]:
    content = hub.read(repository, name, _FIRST_LOOK)
    length = 8 + int.from_bytes(content[:8], "little")
    if len(content) < length <= _MOST_BYTES:
        content += hub.read(repository, name, length - len(content), len(content))
    return {0: content[:length]}


def _write(path: Path, content: bytes, start: int = 0) -> None:
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(start)
        file.write(content)
