"""Opens a GGUF model in one file or in several, which are one model whichever of them is named."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

import gguf

from engine.errors import ModelFormatError
from engine.files import refuse_pointer

_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE)
_MAX_PARTS = 1000
_SHOWN = 3
"""Of the names of files that are missing."""


def gguf_parts(path: Path) -> list[Path]:
    """Return the files of the model that `path` belongs to, in order: itself alone, or all of its parts.

    Raises `ModelFormatError` naming those that are missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 0 < int(match["number"]) <= count <= _MAX_PARTS:
        raise ModelFormatError(f"{path.name} is no part of {count}: the file was renamed.")
    paths = [
        path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)
    ]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ModelFormatError(
            f"The model is in {count} files, of which {', '.join(missing[:_SHOWN])}{more} "
            f"{'is' if len(missing) == 1 else 'are'} missing from {path.parent}. Get all of them."
        )
    return paths


class GGUFFiles:
    """The description and the tensors of a model, memory-mapped. `path` is its first file."""

    def __init__(self, path: Path) -> None:
        """Raises `ModelFormatError` for a file that is missing, truncated or of another model."""
        paths = gguf_parts(path)
        self.path = paths[0]
        readers = [_open(part) for part in paths]
        self._maps = [reader.data.base for reader in readers]
        self.fields = readers[0].fields
        _check_parts(paths, readers)
        self.tensors: dict[str, gguf.ReaderTensor] = {}
        for part, reader in zip(paths, readers, strict=True):
            for tensor in reader.tensors:
                if tensor.name in self.tensors:
                    raise ModelFormatError(
                        f"{part.name} has the tensor {tensor.name}, which another part has too."
                    )
                self.tensors[tensor.name] = tensor
        total = _whole(readers[0], "split.tensors.count")
        if len(paths) > 1 and total not in (None, len(self.tensors)):
            raise ModelFormatError(
                f"{self.path.name} and its parts have {len(self.tensors)} tensors, not {total}. "
                "Get them again."
            )

    def let_go(self) -> None:
        """See `MappedSource`."""
        for mapped in self._maps:
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


def _check_parts(paths: list[Path], readers: list[gguf.GGUFReader]) -> None:
    """Raise `ModelFormatError` where the parts do not call themselves parts of one model in this order."""
    for number, (path, reader) in enumerate(zip(paths, readers, strict=True)):
        count, index = (_whole(reader, f"split.{key}") for key in ("count", "no"))
        expected = len(paths) if len(paths) > 1 else 0
        if (count or 0) > 1 and count != expected:
            name = f"NAME-{(index or 0) + 1:05}-of-{count:05}.gguf"
            raise ModelFormatError(
                f"{path.name} is one of {count} files of a model: give it back its name, {name}, "
                "beside the others."
            )
        if expected and (count != expected or index != number):
            raise ModelFormatError(
                f"{path.name} is not part {number + 1} of this model. Get all parts again."
            )


def _open(path: Path) -> gguf.GGUFReader:
    refuse_pointer(path)
    try:
        return gguf.GGUFReader(path)
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:
        raise ModelFormatError(
            f"{path} is not a readable GGUF file; it may be truncated. Get it again."
        ) from error


def _whole(reader: gguf.GGUFReader, key: str) -> int | None:
    field = reader.fields.get(key)
    value: Any = None if field is None else field.contents()
    return value if type(value) is int else None
