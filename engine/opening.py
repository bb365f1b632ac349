"""Tells what lies in the folder that a user names as the model: a converted model, or a release as it is."""

from __future__ import annotations

from pathlib import Path

from engine.converted_folder import ConvertedFolder
from engine.manifest import load_manifest
from engine.model_folder import ModelFolder
from engine.release_files import find_release, is_release
from engine.released_folder import ReleasedFolder


def open_folder(folder: Path) -> ModelFolder:
    """Describe the model in `folder`. Raises `ModelFormatError`."""
    if is_release(folder):
        return ReleasedFolder(find_release(folder))
    return ConvertedFolder(folder, load_manifest(folder))
