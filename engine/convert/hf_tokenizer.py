"""Turns the tokenizer of a Hugging Face folder into one file, in which no text can become a control token.

Control tokens are those the folder calls special, those the model ends with, and those the chat template
writes: not all authors mark the last ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.convert.tokenizer_files import AddedToken, SentencePieceFile, TokenizerFile, TokenizersFile
from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError
from engine.files import read_optional_json, refuse_pointer

_MOST_PADDING = 2048
"""Embeddings are padded to a round number of rows for the sake of the hardware they were trained on."""


class HuggingFaceTokenizer:
    """The tokenizer of a folder, and the chat template that comes with it. Raises `ModelFormatError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = read_optional_json(folder / "tokenizer_config.json")
        self.chat_template = read_chat_template(folder, self._config)
        try:
            self._file = self._open()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelFormatError(f"{folder} has a damaged tokenizer ({error}).") from error

    def token_ids(self, key: str) -> list[int]:
        """Return the id of the token that the configuration names under `key`, if it does."""
        text = _written(self._config.get(key))
        return [self._file.ids[text]] if text in self._file.ids else []

    def save(self, folder: Path, num_rows: int, ends: Iterable[int]) -> TokenizerSpec:
        """Write the tokenizer's file for `num_rows` embeddings. `ends` are control tokens in any case."""
        ids = self._file.ids
        num_tokens = max(ids.values(), default=-1) + 1
        if not 0 <= num_rows - num_tokens <= min(_MOST_PADDING, num_tokens // 8):
            raise ModelFormatError(f"{self._folder} has {num_tokens} tokens for {num_rows} embeddings.")
        added, template = self._file.added, self.chat_template
        control = {token.token_id for token in added if token.special or token.text in template}
        control |= set(ends) & set(ids.values())
        self._file.save(folder / self._file.file_name, control)
        special = {text: token for text, token in ids.items() if token in control}
        return TokenizerSpec(self._file.kind, self._file.file_name, special)

    def _open(self) -> TokenizerFile:
        if (self._folder / SentencePieceFile.file_name).exists():
            return SentencePieceFile(self._folder, self._added_tokens())
        if (self._folder / TokenizersFile.file_name).exists():
            return TokenizersFile(self._folder)
        raise ModelFormatError(f"{self._folder} has neither a tokenizer.model nor a tokenizer.json.")

    def _added_tokens(self) -> list[AddedToken]:
        """Return what was added to a SentencePiece model; its file does not know of it."""
        names = read_optional_json(self._folder / "special_tokens_map.json") | self._config
        special = {_written(value) for key, value in names.items() if key.endswith("_token")}
        special |= {_written(value) for value in names.get("additional_special_tokens") or ()}
        older = read_optional_json(self._folder / "added_tokens.json")
        added = {token_id: AddedToken(token_id, text, text in special) for text, token_id in older.items()}
        for index, token in (self._config.get("added_tokens_decoder") or {}).items():
            added[int(index)] = AddedToken(int(index), token["content"], bool(token.get("special")))
        return [added[token_id] for token_id in sorted(added)]


def _written(token: object) -> str:
    """Return a token's written form: folders have it as text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


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
