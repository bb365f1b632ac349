"""Tells which kind of weights lie at a path, and opens them."""

from __future__ import annotations

from pathlib import Path

from engine.convert.gguf_source import GGUFSource
from engine.convert.release_source import ReleaseSource
from engine.convert.source import ModelSource
from engine.errors import ModelFormatError
from engine.release_files import is_release


def open_source(path: Path) -> ModelSource:
    """Open the weights at `path`. Raises `ModelFormatError` where there are none that this program reads."""
    if path.exists() and is_release(path):
        return ReleaseSource(path)
    if not path.is_file():
        raise ModelFormatError(f"There is no file {path}.")
    return GGUFSource(path)
