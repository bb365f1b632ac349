"""Reads the JSON files that describe somebody's model, and says in a sentence what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.convert.git_lfs import refuse_pointer
from engine.errors import ModelFormatError


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
