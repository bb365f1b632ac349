"""Scratch folders, JSON that describes a model, and what Git leaves in the place of a large file."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from engine.errors import ModelFormatError

_STALE_SECONDS = 3600.0
"""A folder in use is written to all the time: after an hour of silence its process is gone."""


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder in `parent`, which exists, and remove it at the end. Raises `OSError`.

    Abandoned folders of the same prefix are removed first, so choose one that nobody else uses.
    """
    for path in parent.iterdir():
        if path.name.startswith(prefix) and _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    written = 0.0
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            written = max(written, path.stat().st_mtime)
    return time.time() - written > _STALE_SECONDS


_POINTER = b"version https://git-lfs"


def refuse_pointer(path: Path) -> None:
    """Raise `ModelFormatError` if `path` is a Git LFS pointer instead of the file it stands for."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:
        return  # whoever opens it for its contents says more
    if is_pointer:
        raise ModelFormatError(f'{path} is a Git LFS pointer, not the file itself. Run "git lfs pull".')


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds. Raises `ModelFormatError`."""
    refuse_pointer(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFormatError(f"{path.name} is missing from {path.parent}.") from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not valid JSON; it may be truncated. Get it again.") from error
    if not isinstance(raw, dict):
        raise ModelFormatError(f"{path} is not a JSON object.")
    return raw


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds, an empty one where there is no file. Raises `ModelFormatError`."""
    return read_json(path) if path.exists() else {}


def from_json(kind: Any, raw: object, name: str) -> Any:
    """Return the JSON value `raw`, called `name`, as a `kind`: a dataclass, or what its fields may be.

    Raises `KeyError` for a field that is missing, else `TypeError` or `ValueError`.
    """
    origin, options = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(kind, _object(raw, name))
    if origin is Mapping:
        return {key: from_json(options[1], value, key) for key, value in _object(raw, name).items()}
    if origin is tuple and isinstance(raw, list):
        return tuple(from_json(options[0], value, name) for value in raw)
    if origin is UnionType:
        return from_json(_option(options, raw), raw, name)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(str(raw))
    if kind is float and type(raw) is int and abs(raw) < 2**53:
        return float(raw)
    if type(raw) is not kind:
        raise TypeError(f"{name} must not be {raw!r:.80}")
    return raw


def _dataclass_from_json(kind: Any, values: dict[str, Any]) -> Any:
    types = _types(kind)
    unknown = sorted(values.keys() - types.keys())
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}")
    for field in dataclasses.fields(kind):
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise KeyError(field.name)
    return kind(**{key: from_json(types[key], value, key) for key, value in values.items()})


def _option(options: tuple[Any, ...], raw: object) -> Any:
    """Return which type of a union a value is of: None, which comes last, or the first with all its keys."""
    if raw is None:
        return options[-1]
    keys = set(raw) if isinstance(raw, dict) else set()
    return next((kind for kind in options if keys <= _types(kind).keys()), options[0])


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _object(raw: object, name: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TypeError(f"{name} is not an object")
    return raw
