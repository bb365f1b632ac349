"""Walks over the beginning of a GGUF file: what it says of itself, and where its weights begin.

For what is not there as a whole yet, or may be no model at all. Models are read in `gguf_source.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_ENTRIES = 2**24
"""Of fields, of tensors and of an array: a damaged file must not make us count for hours."""
_ALIGNMENT = 32
Scalar = str | int | float | bool


class IncompleteError(Exception):
    """The bytes end before the header does."""


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """fields: the single values. places: where each tensor's values begin in the file."""

    fields: Mapping[str, Scalar]
    places: Mapping[str, int]

    @property
    def kind(self) -> str:
        """Return what sort of file it says to be: `model`, `adapter`, `mmproj`, `imatrix` and such."""
        kind = str(self.fields.get("general.type", "model"))
        return "mmproj" if self.fields.get("general.architecture") == "clip" else kind


def read_header(content: bytes) -> GGUFHeader:
    """Read what `content` begins with. Raises `IncompleteError`, or `ValueError` for no GGUF file."""
    walk = _Walk(content)
    if walk.take(4) != MAGIC:
        raise ValueError("no GGUF file")
    if walk.number("I") not in (2, 3):
        raise ValueError("a version of GGUF that is not known")
    num_tensors, num_fields = walk.count(), walk.count()
    fields: dict[str, Scalar] = {}
    for _ in range(num_fields):
        key, value = walk.text(), walk.value(walk.number("I"))
        if value is not None:
            fields[key] = value
    offsets: dict[str, int] = {}
    for _ in range(num_tensors):
        name = walk.text()
        walk.skip(8 * walk.number("I") + 4)  # dimensions and type
        offsets[name] = walk.number("Q")
    alignment = max(1, int(fields.get("general.alignment", _ALIGNMENT)))
    start = -(-walk.position // alignment) * alignment
    return GGUFHeader(fields, {name: start + offset for name, offset in offsets.items()})


class _Walk:
    """A place in the bytes, which only moves on."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def skip(self, num_bytes: int) -> None:
        self.position += num_bytes
        if self.position > len(self._content):
            raise IncompleteError

    def take(self, num_bytes: int) -> bytes:
        start = self.position
        self.skip(num_bytes)
        return self._content[start : self.position]

    def number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0])

    def count(self) -> int:
        count = self.number("Q")
        if count > _MOST_ENTRIES:
            raise ValueError("a number of entries that cannot be right")
        return count

    def text(self) -> str:
        return self.take(self.number("Q")).decode(errors="replace")

    def value(self, kind: int) -> Scalar | None:
        """Return a single value, None for an array, which is passed over."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.count()
            if inner in _FORMATS:
                self.skip(count * struct.calcsize(_FORMATS[inner]))
            else:
                for _ in range(count):
                    self.value(inner)
            return None
        if kind not in _FORMATS:
            raise ValueError("a value of a type that is not known")
        form = _FORMATS[kind]
        value: Scalar = struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]
        return value
