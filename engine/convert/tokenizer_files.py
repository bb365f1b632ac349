"""Files that hold a tokenizer, of SentencePiece and of tokenizers, with what was added to it outside."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError
from engine.files import read_json, refuse_pointer

_Piece = sentencepiece_model.ModelProto.SentencePiece
_FIXED = (_Piece.UNKNOWN, _Piece.BYTE)
"""What SentencePiece itself needs stays as it is, however a folder calls it."""
_MAX_ADDED = 100_000


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the trained ones. What is not `special` is meant to be found in text.

    lstrip, rstrip: whether it swallows the white space on its left or right.
    """

    token_id: int
    text: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False

    @classmethod
    def of(cls, token_id: int, described: Any) -> AddedToken:
        """Return the token that a folder's JSON describes."""
        flags = {name: bool(described.get(name)) for name in ("special", "lstrip", "rstrip")}
        return cls(token_id, str(described["content"]), **flags)


class TokenizerFile(Protocol):
    """The tokenizer in one file of somebody's."""

    file_name: str
    kind: str
    """As `TokenizerSpec` has it."""

    @property
    def ids(self) -> dict[str, int]:
        """Return the ids of all tokens by their written form."""

    @property
    def added(self) -> Collection[AddedToken]:
        """Return the tokens that are not of the trained text, whoever added them."""

    def save(self, path: Path, control: Collection[int], num_rows: int) -> None:
        """Write a file in which no text becomes one of the tokens `control`, or one beyond `num_rows`."""


def spec_of(
    file: TokenizerFile, control: Collection[int], *, num_rows: int, spaced_inside: bool = True
) -> TokenizerSpec:
    """Describe the file that `save` writes."""
    special = {text: token for text, token in file.ids.items() if token in control and token < num_rows}
    left, right = (
        tuple(token.text for token in file.added if getattr(token, side) and token.text in special)
        for side in ("lstrip", "rstrip")
    )
    return TokenizerSpec(file.kind, file.file_name, special, left, right, spaced_inside)


class SentencePieceFile:
    """A `tokenizer.model` of a folder. Raises `ModelFormatError`, and `ValueError` for bad additions."""

    file_name = "tokenizer.model"
    kind = "sentencepiece"

    def __init__(self, folder: Path, added: Sequence[AddedToken]) -> None:
        path = folder / self.file_name
        refuse_pointer(path)
        self._model = sentencepiece_model.ModelProto()
        try:
            self._original = path.read_bytes()
            self._model.ParseFromString(self._original)
            if not self._model.pieces:
                raise ValueError("no pieces")
        except OSError as error:
            raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
        except Exception as error:
            raise ModelFormatError(f"{path} is not a readable SentencePiece model.{_other(path)}") from error
        self._size = len(self._model.pieces)
        own = [
            AddedToken(index, piece.piece, special=piece.type == _Piece.CONTROL)
            for index, piece in enumerate(self._model.pieces)
            if piece.type in (_Piece.CONTROL, _Piece.USER_DEFINED)
        ]
        self._new = [token for token in added if self._is_new(token)]
        for token in self._new:
            self._add(token)
        known = [token for token in added if self._model.pieces[token.token_id].type not in _FIXED]
        self.added = [*own, *known]

    @property
    def ids(self) -> dict[str, int]:
        return {piece.piece: index for index, piece in enumerate(self._model.pieces)}

    def save(self, path: Path, control: Collection[int], num_rows: int) -> None:
        pieces = self._model.pieces
        del pieces[num_rows:]
        control = [token for token in control if token < num_rows]
        opened = [index for index in control if pieces[index].type not in (_Piece.CONTROL, *_FIXED)]
        for index in opened:
            pieces[index].type = _Piece.CONTROL
        is_changed = self._new or opened or len(pieces) < self._size
        path.write_bytes(self._model.SerializeToString() if is_changed else self._original)

    def _is_new(self, token: AddedToken) -> bool:
        """Folders list the model's own control tokens again; these are left as the model has them."""
        pieces = self._model.pieces
        return not (0 <= token.token_id < len(pieces) and pieces[token.token_id].piece == token.text)

    def _add(self, token: AddedToken) -> None:
        """Put a token where it belongs; gaps before it are filled with pieces that nothing uses."""
        pieces = self._model.pieces
        if not 0 <= token.token_id < len(pieces) + _MAX_ADDED:
            raise ValueError(f"the token {token.text!r} has the id {token.token_id}")
        while len(pieces) <= token.token_id:
            pieces.add(piece=f"<unused {len(pieces)}>", score=0.0, type=_Piece.UNUSED)
        pieces[token.token_id].piece = token.text
        pieces[token.token_id].type = _Piece.CONTROL if token.special else _Piece.USER_DEFINED


def _other(path: Path) -> str:
    """Return what else a file is known to be, as a sentence with a space before it."""
    line = path.read_bytes().partition(b"\n")[0]
    if not _TIKTOKEN_LINE.fullmatch(line):
        return ""
    return " It is a tiktoken file: get the tokenizer.json next to it on Hugging Face."


_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?")


class TokenizersFile:
    """The file of a folder. Raises `ModelFormatError`, or a `LookupError` or `TypeError` for odd contents."""

    file_name = "tokenizer.json"

    def __init__(self, folder: Path, more: Sequence[AddedToken] = ()) -> None:
        """`more` are what the folder's other files add."""
        path = folder / self.file_name
        self._raw = read_json(path)
        model = self._raw["model"]
        if not is_bpe(self._raw):
            raise ModelFormatError(f"{path} is a {model['type']} tokenizer; only BPE is supported.")
        self.added = [AddedToken.of(int(token["id"]), token) for token in self._raw.get("added_tokens") or ()]
        self.ids = {str(text): int(token_id) for text, token_id in model["vocab"].items()}
        self.ids |= {token.text: token.token_id for token in self.added}
        self._new = [token for token in more if token.text not in self.ids]
        self.added += self._new
        self.ids |= {token.text: token.token_id for token in self._new}
        if len(set(self.ids.values())) != len(self.ids) or min(self.ids.values()) < 0:
            raise ValueError("two of its tokens have the same id")
        kinds = set(_types(self._raw.get("pre_tokenizer"))) | set(_types(self._raw.get("decoder")))
        if "ByteLevel" in kinds:
            self.kind = "bpe"
        elif model.get("byte_fallback") or "Metaspace" in kinds:
            self.kind = "bpe-metaspace"
        else:
            raise ModelFormatError(f"{path} says in no way known here how tokens become text.")

    def save(self, path: Path, control: Collection[int], num_rows: int) -> None:
        added = [*(self._raw.get("added_tokens") or ()), *map(_written, self._new)]
        tokens = [
            token | {"special": bool(token.get("special")) or token["id"] in control}
            for token in sorted(added, key=lambda token: int(token["id"]))
            if token["id"] < num_rows
        ]
        # Cutting and padding are for training.
        changed = self._raw | {"added_tokens": tokens, "truncation": None, "padding": None}
        vocabulary = self._raw["model"]["vocab"]
        beside = [token for token in tokens if token["content"] not in vocabulary]
        if [token["id"] for token in beside] != [*range(len(vocabulary), len(vocabulary) + len(beside))]:
            # The library numbers them on, whatever their ids: only what is in the vocabulary may have gaps.
            own = vocabulary | {token["content"]: token["id"] for token in beside}
            changed["model"] = self._raw["model"] | {"vocab": own}
        path.write_text(json.dumps(changed, ensure_ascii=False), encoding="utf-8")


def is_bpe(described: Any) -> bool:
    """Tell whether a `tokenizer.json` holds a BPE, the only kind that is known here."""
    return bool(described["model"].get("type", "BPE") == "BPE")


def _written(token: AddedToken) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": token.lstrip, "rstrip": token.rstrip, "normalized": False}
    return {"id": token.token_id, "content": token.text, "special": token.special, **flags}


def _types(part: Any) -> Iterator[str]:
    """Give the types of a pre-tokenizer or decoder and of those inside it."""
    if isinstance(part, dict):
        yield str(part.get("type"))
        for inner in part.get("pretokenizers") or part.get("decoders") or ():
            yield from _types(inner)
