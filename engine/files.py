"""Scratch folders, JSON files that describe a model, and what Git leaves in the place of a large file."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
        raise ModelFormatError(f"{path} is not valid JSON; it may be truncated.") from error
    if not isinstance(raw, dict):
        raise ModelFormatError(f"{path} is not a JSON object.")
    return raw


def read_optional_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds, an empty one where there is no file. Raises `ModelFormatError`."""
    return read_json(path) if path.exists() else {}
