"""The tokenizer of a Hugging Face folder, and the chat template that comes with it.

A `tokenizer.json` comes first: it is what transformers reads. Llama 2 keeps the path of Meta's example, which
reads the `tokenizer.model`. The tokenizer becomes one file in which no text can become a control token: those
are what the folder calls special, what the model ends with, and what the chat template writes, for not all
authors mark the last ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.convert.model_advice import END_TOKENS
from engine.convert.tokenizer_files import (
    AddedToken,
    SentencePieceFile,
    TokenizerFile,
    TokenizersFile,
    is_bpe,
    spec_of,
)
from engine.describing.manifest import ChatSpec, TokenizerSpec
from engine.errors import ModelFormatError
from engine.files import read_json, read_optional_json, refuse_pointer
from engine.text.chat_choice import check_tokens, detect_chat, writes

_TEMPLATE_FILE = "chat_template.jinja"
_LLAMA_2_SHA256 = "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"
"""Of the `tokenizer.model` that Meta published, which many models share."""
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Tokens that templates may speak of."""
_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
"""Those of transformers' tokenizer for Llama."""
_LEAST_SHARE = 8
"""Embeddings are padded for the sake of the hardware, by an eighth of the tokens at most."""


class HuggingFaceTokenizer:
    """The tokenizer of a folder for a model with `num_rows` embeddings. Raises `ModelFormatError`.

    `chat` is used in the place of the folder's own template.
    """

    def __init__(self, folder: Path, num_rows: int, chat: ChatSpec | None = None) -> None:
        self._folder = folder
        self._num_rows = num_rows
        self._config = read_optional_json(folder / "tokenizer_config.json")
        template = read_chat_template(folder, self._config) if chat is None else chat.template
        try:
            names = self._names()
            self.chat = chat or ChatSpec(None)
            if template:
                self.chat = self._detected(template, names)
            self._file = self._open()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelFormatError(f"{folder} has a damaged tokenizer ({error}).") from error
        self._check_size()
        check_tokens(self.chat, self._file.ids)

    def token_ids(self, key: str) -> list[int]:
        """Return the id of the token that the configuration names under `key`, if it does."""
        text = _written(self._config.get(key))
        return self._ids_of([text])

    def known_ends(self) -> list[int]:
        """Return the ids of tokens that end a turn in every model that has them as control tokens."""
        special = {token.text for token in self._file.added if token.special}
        return self._ids_of(text for text in END_TOKENS if text in special)

    def save(self, folder: Path, ends: Iterable[int]) -> TokenizerSpec:
        """Write the tokenizer's file. `ends` are control tokens in any case."""
        file, special = self._file, self._special_texts()
        control = {
            token.token_id
            for token in file.added
            if token.special or token.text in special or writes(self.chat, token.text)
        }
        control |= set(ends) & set(file.ids.values())
        file.save(folder / file.file_name, control, self._num_rows)
        is_spaced = self._config.get("legacy") is not False or self.chat.format == "llama-2"
        return spec_of(file, control, num_rows=self._num_rows, spaced_inside=is_spaced)

    def _ids_of(self, texts: Iterable[str]) -> list[int]:
        ids = (self._file.ids[text] for text in texts if text in self._file.ids)
        return [token for token in ids if token < self._num_rows]

    def _check_size(self) -> None:
        """Tokens that were added beyond the embeddings are not for this model, as Gemma's for pictures."""
        beyond = [token for token in self._file.added if token.token_id >= self._num_rows]
        num_tokens = max(self._file.ids.values(), default=-1) + 1
        largest = max((i for i in self._file.ids.values() if i < self._num_rows), default=-1) + 1
        num_trained = len(self._file.ids) - len(beyond)
        if num_trained > self._num_rows or self._num_rows - largest > num_trained // _LEAST_SHARE:
            raise ModelFormatError(
                f"{self._folder} has {num_tokens} tokens for {self._num_rows} embeddings: "
                "they do not belong together."
            )

    def _names(self) -> dict[str, str]:
        """Return the written forms of the tokens that templates may speak of."""
        named = read_optional_json(self._folder / "special_tokens_map.json") | self._config
        is_llama = str(self._config.get("tokenizer_class", "")).startswith("Llama")
        has_json = (self._folder / TokenizersFile.file_name).exists()
        defaults = _DEFAULTS if is_llama or not has_json else {}
        found = {key: _written(named[key]) if key in named else defaults.get(key, "") for key in _NAMED}
        return {key: text for key, text in found.items() if text}

    def _detected(self, template: str, names: Mapping[str, str]) -> ChatSpec:
        """Return the chat format of a template in this folder."""
        known: TokenizerFile = self._open_json() if self._has_bpe() else self._open_model()
        swallow = any(token.lstrip or token.rstrip for token in known.added if token.text in template)
        return detect_chat(template, names, known.ids, is_only_text=not swallow)

    def _open(self) -> TokenizerFile:
        model = self._folder / SentencePieceFile.file_name
        if self._has_bpe() and not (model.exists() and self._is_llama_2(model)):
            return self._open_json()
        return self._open_model()

    def _open_json(self) -> TokenizersFile:
        return TokenizersFile(self._folder, self._added_tokens())

    def _open_model(self) -> SentencePieceFile:
        json_file = self._folder / TokenizersFile.file_name
        if (self._folder / SentencePieceFile.file_name).exists():
            added = self._added_tokens()
            if json_file.exists():  # the newer file of the two
                raw = read_json(json_file)
                added = [AddedToken.of(int(token["id"]), token) for token in raw.get("added_tokens") or ()]
            return SentencePieceFile(self._folder, added)
        if json_file.exists():
            TokenizersFile(self._folder)  # says what is wrong with it
        raise ModelFormatError(f"{self._folder} has neither a tokenizer.model nor a tokenizer.json.")

    def _has_bpe(self) -> bool:
        path = self._folder / TokenizersFile.file_name
        return path.exists() and is_bpe(read_json(path))

    def _is_llama_2(self, model: Path) -> bool:
        """Tell whether Meta's own path is the model's: by its chat format, or without one by the file."""
        refuse_pointer(model)
        if self.chat.format is not None:
            return self.chat.format == "llama-2" and _is_sentencepiece(model)
        return hashlib.sha256(model.read_bytes()).hexdigest() == _LLAMA_2_SHA256

    def _special_texts(self) -> set[str]:
        """Return what the folder's settings call a special token."""
        names = read_optional_json(self._folder / "special_tokens_map.json") | self._config
        special = {_written(value) for key, value in names.items() if key.endswith("_token")}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = names.get(key) or ()
            special |= {
                _written(value) for value in (listed.values() if isinstance(listed, dict) else listed)
            }
        return special - {""}

    def _added_tokens(self) -> list[AddedToken]:
        """Return what was added beside the file of the trained tokens, which need not know of it."""
        special = self._special_texts()
        older = read_optional_json(self._folder / "added_tokens.json")
        added = {token_id: AddedToken(token_id, text, text in special) for text, token_id in older.items()}
        for index, token in (self._config.get("added_tokens_decoder") or {}).items():
            added[int(index)] = AddedToken.of(int(index), token)
        return [added[token_id] for token_id in sorted(added)]


def _is_sentencepiece(model: Path) -> bool:
    try:
        SentencePieceFile(model.parent, [])
    except ModelFormatError:
        return False
    return True


def _written(token: object) -> str:
    """Return a token's written form: folders have it as text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def read_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """Return the template's source, nothing where there is none. Raises `ModelFormatError`."""
    path = folder / _TEMPLATE_FILE
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
