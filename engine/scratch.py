"""Temporary folders beside what they will become: removed at the end, and later if the process was killed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
