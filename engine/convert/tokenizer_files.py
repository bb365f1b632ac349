"""Files that hold a tokenizer, of SentencePiece and of tokenizers, with what was added to it outside.

The tokenizer inside a GGUF file becomes a file of its own: byte-level BPE or SentencePiece.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model
from tokenizers import decoders, models, pre_tokenizers

from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError
from engine.files import read_json, refuse_pointer

_Piece = sentencepiece_model.ModelProto.SentencePiece
_FIXED = (_Piece.UNKNOWN, _Piece.BYTE)
"""What SentencePiece itself needs stays as it is, however a folder calls it."""
_MAX_ADDED = 100_000
Field = Callable[[str], Any]
"""Returns a GGUF metadata field; raises `ModelFormatError` when it is missing."""
_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL_TOKEN, _USER_DEFINED_TOKEN = 3, 4
"""GGUF's token types are SentencePiece's piece types: 1 normal, 2 unknown, 3 control, 4 added, 6 byte."""
_PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_LLAMA_3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
"""Byte-level pre-tokenizers by their GGUF name. An unknown one is refused: guessing would garble text."""
_WHOLE_WORDS_FIRST = {"llama-bpe"}
"""These look a word up before they merge its pieces."""


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

    def save(self, path: Path, control: Collection[int]) -> None:
        """Write a file in which no text becomes one of the tokens `control`."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the trained ones. What is not `special` is meant to be found in text."""

    token_id: int
    text: str
    special: bool


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
        except OSError as error:
            raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
        except Exception as error:
            raise ModelFormatError(f"{path} is not a readable SentencePiece model.") from error
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

    def save(self, path: Path, control: Collection[int]) -> None:
        pieces = self._model.pieces
        opened = [index for index in control if pieces[index].type not in (_Piece.CONTROL, *_FIXED)]
        for index in opened:
            pieces[index].type = _Piece.CONTROL
        path.write_bytes(self._model.SerializeToString() if self._new or opened else self._original)

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


def save_tokenizer(
    field: Field, folder: Path, chat_template: str = "", ends: Collection[int] = ()
) -> TokenizerSpec:
    """Write the tokenizer's file into `folder` and describe it. Raises `ModelFormatError`.

    Control tokens are also what the chat template writes and what ends a text: not all files mark them.
    """
    pieces: list[str] = field("tokenizer.ggml.tokens")
    types: list[int] = list(field("tokenizer.ggml.token_type"))
    if len(types) != len(pieces):
        raise ModelFormatError(f"The tokenizer has {len(pieces)} tokens and {len(types)} token types.")
    for i, piece in enumerate(pieces):
        if types[i] == _USER_DEFINED_TOKEN and (piece in chat_template or i in ends):
            types[i] = _CONTROL_TOKEN
    special = {piece: i for i, piece in enumerate(pieces) if types[i] == _CONTROL_TOKEN}
    kind = field("tokenizer.ggml.model")
    if kind == "gpt2":
        added = [piece for i, piece in enumerate(pieces) if types[i] == _USER_DEFINED_TOKEN]
        _save_bpe(field, pieces, added, folder / "tokenizer.json")
        return TokenizerSpec("bpe", "tokenizer.json", special)
    if kind == "llama":
        _save_sentencepiece(pieces, types, field("tokenizer.ggml.scores"), folder / "tokenizer.model")
        return TokenizerSpec("sentencepiece", "tokenizer.model", special)
    raise ModelFormatError(f"The tokenizer is of the kind {kind!r}, which is not supported.")


def _save_bpe(field: Field, pieces: list[str], added: list[str], path: Path) -> None:
    pre = field("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise ModelFormatError(f"The tokenizer splits text in the way {pre!r}, which is not supported.")
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    # Control tokens stay ordinary vocabulary that no merge reaches: text can never become one.
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    # What was added to the trained tokens is found in text as it stands.
    tokenizer.add_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in added])
    tokenizer.save(str(path))


def _save_sentencepiece(pieces: list[str], types: list[int], scores: list[float], path: Path) -> None:
    """Write a SentencePiece BPE model with Llama's settings: byte fallback, a space put before the text."""
    model = sentencepiece_model.ModelProto()
    for piece, kind, score in zip(pieces, types, scores, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = sentencepiece_model.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    path.write_bytes(model.SerializeToString())
