"""Recognises what Git leaves in the place of a large file that it did not fetch."""

from __future__ import annotations

from pathlib import Path

from engine.errors import ModelFormatError

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
