"""Text to token ids and ids to bytes. The only file that imports `tokenizers` and `sentencepiece`.

Plain text never becomes a control id: special tokens are known by `special_ids` only, and the chat
format places them. What a token contributes to the output is given as bytes, since one character may be
spread over several tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from engine.errors import ModelFormatError
from engine.manifest import TokenizerSpec


class Tokenizer(Protocol):
    """What prompts and streams need of a tokenizer. All methods are safe to call from any thread."""

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Return the ids of the control tokens, by their written form."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text: no control ids, nothing added before or after."""

    @property
    def token_bytes(self) -> list[bytes]:
        """Return what each id adds to the output, in UTF-8 bytes; control ids add nothing."""

    @property
    def strips_first_space(self) -> bool:
        """Return whether a space that opens an answer belongs to the encoding and not to the text."""


class BpeTokenizer:
    """Byte-level BPE from a `tokenizer.json`."""

    strips_first_space = False

    def __init__(self, path: Path, special_ids: Mapping[str, int]) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelFormatError(f"{path} is not a readable tokenizer: {error}") from error
        # A file may declare control tokens; text that looks like one stays text.
        self._tokenizer.encode_special_tokens = True
        self.special_ids = dict(special_ids)

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(_valid_unicode(text), add_special_tokens=False).ids)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        byte_of = _byte_of_character()
        control = set(self.special_ids.values())
        for piece, index in self._tokenizer.get_vocab().items():
            if index not in control:
                table[index] = bytes(byte_of[character] for character in piece if character in byte_of)
        return table


class SentencePieceTokenizer:
    """A SentencePiece model with byte fallback, such as Llama 2's."""

    strips_first_space = True

    def __init__(self, path: Path, special_ids: Mapping[str, int]) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ModelFormatError(f"{path} is not a readable SentencePiece model.") from error
        self.special_ids = dict(special_ids)

    @property
    def vocab_size(self) -> int:
        return int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(_valid_unicode(text)))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        return [self._bytes_of(index) for index in range(self.vocab_size)]

    def _bytes_of(self, index: int) -> bytes:
        processor = self._processor
        if processor.is_control(index) or processor.is_unknown(index):
            return b""
        piece: str = processor.id_to_piece(index)
        if processor.is_byte(index):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


def load_tokenizer(folder: Path, spec: TokenizerSpec) -> Tokenizer:
    """Open the tokenizer that a manifest names. Raises `ModelFormatError`."""
    path = folder / spec.file
    if spec.kind == "bpe":
        return BpeTokenizer(path, spec.special_ids)
    if spec.kind == "sentencepiece":
        return SentencePieceTokenizer(path, spec.special_ids)
    raise ModelFormatError(f"This program knows no tokenizer of the kind {spec.kind!r}.")


def _valid_unicode(text: str) -> str:
    """Replace lone surrogates, which no tokenizer can encode."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's table).

    Printable Latin-1 bytes stand for themselves; the others are numbered from U+0100 in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + number): byte for number, byte in enumerate(others)})
    return table
