"""Tells which kind of weights lie at a path, and opens them."""

from __future__ import annotations

from pathlib import Path

from engine.convert.gguf_source import GGUFSource
from engine.convert.source import ModelSource
from engine.errors import ModelFormatError


def open_source(path: Path) -> ModelSource:
    """Open the weights at `path`. Raises `ModelFormatError` where there are none that this program reads."""
    if not path.is_file():
        raise ModelFormatError(f"There is no file {path}.")
    return GGUFSource(path)
