"""What somebody needs who makes a model's prompts and has no weights of it: two small files.

`text.json` describes tokenizer and chat format, the other one is the tokenizer's. Nothing in files from
elsewhere is trusted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from engine.describing.manifest import ChatSpec, FileEntry, TokenizerSpec, sha256_of
from engine.errors import ModelFormatError
from engine.files import from_json
from engine.text.chat_choice import named_chat
from engine.text.model_text import ModelText, TextModel
from engine.text.tokenizer import load_tokenizer

TEXT_FILE = "text.json"


@dataclass(frozen=True, slots=True)
class TextSpec:
    """Satisfies `TextModel`."""

    tokenizer: TokenizerSpec
    chat: ChatSpec
    bos_id: int
    eos_id: int
    stop_ids: tuple[int, ...]
    vocab_size: int


class TextSource(TextModel, Protocol):
    """A model that knows where its tokenizer lies."""

    @property
    def tokenizer_spec(self) -> TokenizerSpec: ...

    @property
    def tokenizer_file(self) -> Path: ...


class TextFiles:
    """The two files: the description in memory, the tokenizer's where it lies."""

    def __init__(self, described: bytes, tokenizer_file: Path) -> None:
        """Raises `ModelFormatError`."""
        self.described = described
        self.tokenizer_file = tokenizer_file
        self.spec = _read(described)
        if self.spec.tokenizer.file != tokenizer_file.name:
            raise ModelFormatError(f"{TEXT_FILE} speaks of another file than {tokenizer_file.name}.")
        try:
            size, checksum = tokenizer_file.stat().st_size, sha256_of(tokenizer_file)
        except OSError as error:
            raise ModelFormatError(f"{tokenizer_file} cannot be read: {error.strerror}.") from error
        self.entries = {
            TEXT_FILE: FileEntry(len(described), hashlib.sha256(described).hexdigest()),
            tokenizer_file.name: FileEntry(size, checksum),
        }

    @classmethod
    def of(cls, model: TextSource, chosen: str = "") -> TextFiles:
        """Describe a model, with a chat format in the place of its own where one is `chosen`.

        Reads the tokenizer's file. Raises `ModelFormatError`.
        """
        spec = TextSpec(
            model.tokenizer_spec,
            named_chat(chosen) or model.chat,
            model.bos_id,
            model.eos_id,
            model.stop_ids,
            model.vocab_size,
        )
        described = json.dumps(asdict(spec), sort_keys=True, ensure_ascii=False, indent=1).encode()
        return cls(described, model.tokenizer_file)

    @classmethod
    def load(cls, folder: Path) -> TextFiles:
        """Read what lies in a folder. Raises `ModelFormatError`."""
        try:
            described = (folder / TEXT_FILE).read_bytes()
        except OSError as error:
            raise ModelFormatError(f"{folder / TEXT_FILE} cannot be read: {error.strerror}.") from error
        return cls(described, folder / _read(described).tokenizer.file)

    @property
    def fingerprint(self) -> str:
        """Return what differs wherever text or tokens may differ: a hexadecimal SHA-256."""
        lines = (f"{entry.sha256} {name}\n" for name, entry in sorted(self.entries.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def read(self, name: str) -> bytes:
        """Return the bytes of one of `entries`. Raises `KeyError`, or `OSError`."""
        self.entries[name]
        return self.described if name == TEXT_FILE else self.tokenizer_file.read_bytes()

    def open(self, chosen: str = "") -> ModelText:
        """Open the tokenizer. chosen: as for `ModelText`. Raises `ModelFormatError`."""
        tokenizer = load_tokenizer(self.tokenizer_file.parent, self.spec.tokenizer)
        return ModelText(self.spec, tokenizer, chosen)


def _read(described: bytes) -> TextSpec:
    try:
        spec: TextSpec = from_json(TextSpec, json.loads(described), "the description")
        _check(spec)
    except KeyError as error:
        raise ModelFormatError(f"{TEXT_FILE} is damaged: it lacks {error}.") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFormatError(f"{TEXT_FILE} is damaged: {error}.") from error
    return spec


def _check(spec: TextSpec) -> None:
    """Raise `ValueError` where the parts do not fit each other."""
    name = spec.tokenizer.file
    if name != Path(name).name or name in ("", "..", TEXT_FILE):
        raise ValueError(f"{name!r} is not a plain file name")
    for token in (spec.bos_id, spec.eos_id, *spec.stop_ids, *spec.tokenizer.special_ids.values()):
        if not 0 <= token < spec.vocab_size:
            raise ValueError(f"the control token {token} is outside the vocabulary")
    if len(spec.chat.reasoning) not in (0, 2) or not all(spec.chat.reasoning):
        raise ValueError("the marks around what the model thinks are not two")
