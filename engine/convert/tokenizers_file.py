"""A `tokenizer.json` of the tokenizers library, as the JSON that it is."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from engine.convert.json_file import read_json
from engine.convert.tokenizer_file import AddedToken
from engine.errors import ModelFormatError


class TokenizersFile:
    """The file of a folder. Raises `ModelFormatError`, or a `LookupError` or `TypeError` for odd contents."""

    file_name = "tokenizer.json"

    def __init__(self, folder: Path) -> None:
        path = folder / self.file_name
        self._raw = read_json(path)
        model = self._raw["model"]
        if model.get("type", "BPE") != "BPE":
            raise ModelFormatError(f"{path} is a {model['type']} tokenizer; only BPE is supported.")
        self.added = [
            AddedToken(int(token["id"]), str(token["content"]), bool(token.get("special")))
            for token in self._raw.get("added_tokens") or ()
        ]
        self.ids = {str(text): int(token_id) for text, token_id in model["vocab"].items()}
        self.ids |= {token.text: token.token_id for token in self.added}
        if set(self.ids.values()) != set(range(len(self.ids))):
            raise ValueError("its ids have gaps")
        kinds = set(_types(self._raw.get("pre_tokenizer"))) | set(_types(self._raw.get("decoder")))
        if "ByteLevel" in kinds:
            self.kind = "bpe"
        elif model.get("byte_fallback") or "Metaspace" in kinds:
            self.kind = "bpe-metaspace"
        else:
            raise ModelFormatError(f"{path} says in no way known here how tokens become text.")

    def save(self, path: Path, control: Collection[int]) -> None:
        tokens = [
            token | {"special": bool(token.get("special")) or token["id"] in control}
            for token in self._raw.get("added_tokens") or ()
        ]
        # Cutting and padding are for training.
        changed = self._raw | {"added_tokens": tokens, "truncation": None, "padding": None}
        path.write_text(json.dumps(changed, ensure_ascii=False), encoding="utf-8")


def _types(part: Any) -> Iterator[str]:
    """Give the types of a pre-tokenizer or decoder and of those inside it."""
    if isinstance(part, dict):
        yield str(part.get("type"))
        for inner in part.get("pretokenizers") or part.get("decoders") or ():
            yield from _types(inner)
