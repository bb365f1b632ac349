"""Tells which kind of weights lie at a path, and opens them."""

from __future__ import annotations

from pathlib import Path

from engine.convert.gguf_source import GGUFSource
from engine.convert.hf_source import CONFIG_FILE, HuggingFaceSource
from engine.convert.release_source import ReleaseSource
from engine.convert.source import ModelSource
from engine.errors import ModelFormatError
from engine.files import refuse_pointer
from engine.release.files import is_release


def open_source(path: Path) -> ModelSource:
    """Open the weights at `path`. Raises `ModelFormatError` where there are none that this program reads."""
    if is_release(path):
        return ReleaseSource(path)
    if path.is_dir():
        if (path / CONFIG_FILE).exists():
            return HuggingFaceSource(path)
        raise ModelFormatError(f"{path} is not a model: it has no {CONFIG_FILE} and no ONNX/*.onnx.")
    if not path.is_file():
        raise ModelFormatError(f"There is no file or folder {path}.")
    refuse_pointer(path)
    return GGUFSource(path)
