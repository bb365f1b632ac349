"""Git LFS: recognises the small text that stands where a large file has not been fetched."""

from __future__ import annotations

from pathlib import Path

from engine.errors import ModelFormatError

_POINTER = b"version https://git-lfs"


def refuse_pointer(path: Path) -> None:
    """Raise `ModelFormatError` when `path` is missing, unreadable or still a pointer."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except FileNotFoundError:
        raise ModelFormatError(f"The file {path} is missing. Fetch the model again.") from None
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
    if start == _POINTER:
        raise ModelFormatError(
            f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` in its folder."
        )
