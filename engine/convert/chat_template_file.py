"""Finds the chat template of a Hugging Face folder: it has been kept in three places over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.convert.git_lfs import refuse_pointer
from engine.convert.json_file import read_optional_json
from engine.errors import ModelFormatError

_FILE = "chat_template.jinja"


def read_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """Return the template's source, nothing where there is none. Raises `ModelFormatError`."""
    path = folder / _FILE
    if path.exists():
        refuse_pointer(path)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelFormatError(f"{path} cannot be read.") from error
    found = tokenizer_config.get("chat_template")
    found = found or read_optional_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several by name, of which "default" is for plain chat
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""
