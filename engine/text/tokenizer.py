"""Text to token ids and ids to bytes. The only file that imports `tokenizers` and `sentencepiece`.

Plain text never becomes a control id: special tokens are known by `special_ids` only, and the chat
format places them. What a token contributes to the output is given as bytes, since one character may be
spread over several tokens.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import sentencepiece
import tokenizers

from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads of its own, which one text has no use for

Speller = Callable[[str], bytes]
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")

_SPACE = "\u2581"
"""How SentencePiece writes a space inside a piece."""
_BYTES_OF_AN_ENTRY = 256
"""What a remembered text takes besides its characters and ids."""


class Strips(NamedTuple):
    """Ids of control tokens that swallow the white space on their left, and on their right."""

    left: frozenset[int] = frozenset()
    right: frozenset[int] = frozenset()

    @classmethod
    def of(cls, spec: TokenizerSpec) -> Strips:
        """Return those that a manifest names."""
        left, right = (
            frozenset(spec.special_ids[text] for text in texts if text in spec.special_ids)
            for texts in (spec.lstrip, spec.rstrip)
        )
        return cls(left, right)


class Tokenizer(Protocol):
    """What prompts and streams need of a tokenizer. All methods are safe to call from any thread."""

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Return the ids of the control tokens, by their written form."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text: no control ids, nothing added before or after."""

    def encode_inside(self, text: str) -> list[int]:
        """Return the ids of plain text behind a control token: some put a space before first texts only."""

    @property
    def token_bytes(self) -> list[bytes]:
        """Return what each id adds to the output, in UTF-8 bytes; control ids add nothing."""

    @property
    def opening_space_ids(self) -> frozenset[int]:
        """Return the ids whose space, where one of them opens a text, belongs to the encoding alone."""

    @property
    def strips(self) -> Strips:
        """Return which control tokens swallow white space beside them."""


class BpeTokenizer:
    """BPE from a `tokenizer.json`: byte-level, or in SentencePiece's manner with U+2581 for spaces."""

    def __init__(
        self,
        path: Path,
        special_ids: Mapping[str, int],
        spell: Speller | None = None,
        strips: Strips = Strips(),  # noqa: B008 - it never changes
    ) -> None:
        """`spell` gives the bytes of a trained token; without it they are byte-level."""
        self.strips = strips
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelFormatError(f"{path.name} is not a readable tokenizer: {error}.") from error
        # A file may declare control tokens; text that looks like one stays text.
        self._tokenizer.encode_special_tokens = True
        self.special_ids = dict(special_ids)
        self._spell = spell or _byte_level_speller()
        self._vocabulary: dict[str, int] = self._tokenizer.get_vocab()

    @property
    def vocab_size(self) -> int:
        return max(self._vocabulary.values(), default=-1) + 1

    @cached_property
    def opening_space_ids(self) -> frozenset[int]:
        if not self.token_bytes[(self.encode("a") or [0])[0]].startswith(b" "):
            return frozenset()
        return frozenset(index for piece, index in self._vocabulary.items() if piece.startswith(_SPACE))

    def encode(self, text: str) -> list[int]:
        return _encode(self._tokenizer, text)

    def encode_inside(self, text: str) -> list[int]:
        return _encode(self._inside, text)

    @cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        described = json.loads(self._tokenizer.to_str())
        splitting = described["pre_tokenizer"] or {}
        if splitting.get("type") != "Metaspace" or splitting.get("prepend_scheme") != "first":
            return self._tokenizer
        splitting["prepend_scheme"] = "never"
        inside = tokenizers.Tokenizer.from_str(json.dumps(described))
        inside.encode_special_tokens = True
        return inside

    @cached_property
    def token_bytes(self) -> list[bytes]:
        table = [b""] * self.vocab_size
        added = self._tokenizer.get_added_tokens_decoder()
        for piece, index in self._vocabulary.items():
            table[index] = piece.encode() if index in added else self._spell(piece)
        control = set(self.special_ids.values())
        return [b"" if index in control else data for index, data in enumerate(table)]


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """Encode as a batch of one: all other threads go on meanwhile, which `encode` keeps from running."""
    (encoding,) = tokenizer.encode_batch_fast([valid_unicode(text)], add_special_tokens=False)
    return list(encoding.ids)


class SentencePieceTokenizer:
    """A SentencePiece model with byte fallback, such as Llama 2's."""

    def __init__(
        self,
        path: Path,
        special_ids: Mapping[str, int] | None = None,
        strips: Strips = Strips(),  # noqa: B008 - it never changes
        *,
        spaced_inside: bool = True,
    ) -> None:
        """Without `special_ids` the control tokens are the model's own.

        `spaced_inside`: see `TokenizerSpec`.
        """
        self.strips = strips
        try:
            self._processor = self._inside = sentencepiece.SentencePieceProcessor(model_file=str(path))
            if not spaced_inside:
                self._inside = _without_prefix(path)
        except (OSError, RuntimeError) as error:
            raise ModelFormatError(f"{path.name} is not a readable SentencePiece model.") from error
        self.special_ids = dict(self._own_control() if special_ids is None else special_ids)

    @property
    def bos_id(self) -> int:
        """Return the token that begins a text, -1 where there is none."""
        return int(self._processor.bos_id())

    @property
    def eos_id(self) -> int:
        """Return the token that ends a text, -1 where there is none."""
        return int(self._processor.eos_id())

    @property
    def vocab_size(self) -> int:
        return int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(valid_unicode(text)))

    def encode_inside(self, text: str) -> list[int]:
        return list(self._inside.encode(valid_unicode(text)))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        return [self._bytes_of(index) for index in range(self.vocab_size)]

    @cached_property
    def opening_space_ids(self) -> frozenset[int]:
        if not self.token_bytes[(self.encode("a") or [0])[0]].startswith(b" "):
            return frozenset()
        pieces = enumerate(map(self._processor.id_to_piece, range(self.vocab_size)))
        return frozenset(index for index, piece in pieces if piece.startswith(_SPACE))

    def _own_control(self) -> dict[str, int]:
        processor = self._processor
        return {processor.id_to_piece(i): i for i in range(self.vocab_size) if processor.is_control(i)}

    def _bytes_of(self, index: int) -> bytes:
        processor = self._processor
        if processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
            return b""
        piece: str = processor.id_to_piece(index)
        if processor.is_byte(index):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()


def _without_prefix(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Open a model so that it puts no space before a text."""
    from sentencepiece import sentencepiece_model_pb2 as description  # few need it

    model = description.ModelProto.FromString(path.read_bytes())
    model.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


class RememberingTokenizer:
    """A tokenizer that knows the ids of texts it encoded lately, within a bound: histories are read often."""

    def __init__(self, tokenizer: Tokenizer, max_bytes: int = 8 * 2**20) -> None:
        self._tokenizer = tokenizer
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._known: OrderedDict[tuple[bool, str], array[int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def special_ids(self) -> Mapping[str, int]:
        return self._tokenizer.special_ids

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    @property
    def token_bytes(self) -> list[bytes]:
        return self._tokenizer.token_bytes

    @property
    def opening_space_ids(self) -> frozenset[int]:
        return self._tokenizer.opening_space_ids

    @property
    def strips(self) -> Strips:
        return self._tokenizer.strips

    def encode(self, text: str) -> list[int]:
        return self._recalled(False, text)

    def encode_inside(self, text: str) -> list[int]:
        return self._recalled(True, text)

    def forget(self) -> None:
        """Forget all texts, as when some of them were deleted."""
        with self._lock:
            self._known.clear()
            self._num_bytes = 0

    def _recalled(self, is_inside: bool, text: str) -> list[int]:
        key = is_inside, text
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known.tolist()
        ids = self._tokenizer.encode_inside(text) if is_inside else self._tokenizer.encode(text)
        with self._lock:
            if key not in self._known:
                self._known[key] = array("I", ids)
                self._num_bytes += self._size(key)
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= self._size(next(iter(self._known)))
                self._known.popitem(last=False)
        return ids

    def _size(self, key: tuple[bool, str]) -> int:
        """Return the bytes that an entry takes, those of the dictionary itself included."""
        return sys.getsizeof(key[1]) + sys.getsizeof(self._known[key]) + _BYTES_OF_AN_ENTRY


def load_tokenizer(folder: Path, spec: TokenizerSpec) -> Tokenizer:
    """Open the tokenizer that a manifest names. Raises `ModelFormatError`."""
    path, strips = folder / spec.file, Strips.of(spec)
    if spec.kind == "bpe":
        tokenizer: Tokenizer = BpeTokenizer(path, spec.special_ids, strips=strips)
    elif spec.kind == "bpe-metaspace":
        tokenizer = BpeTokenizer(path, spec.special_ids, _spell_metaspace, strips)
    elif spec.kind == "sentencepiece":
        tokenizer = SentencePieceTokenizer(path, spec.special_ids, strips, spaced_inside=spec.spaced_inside)
    else:
        raise ModelFormatError(f"This program knows no tokenizer of the kind {spec.kind!r}.")
    _refuse_control_from_text(tokenizer)
    return tokenizer


def _refuse_control_from_text(tokenizer: Tokenizer) -> None:
    """Raise `ModelFormatError` if typing a control token makes it one: people could play the system."""
    control = set(tokenizer.special_ids.values())
    for written in tokenizer.special_ids:
        for text in (written, f" {written} ", f"a{written}b"):
            if not control.isdisjoint(tokenizer.encode(text)):
                raise ModelFormatError(f"The tokenizer makes a control token of the plain text {written!r}.")


def valid_unicode(text: str) -> str:
    """Replace lone surrogates, which no tokenizer can encode."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _spell_metaspace(piece: str) -> bytes:
    """Return the bytes of a token: `<0x0A>` is one byte, U+2581 a space."""
    if _BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def _byte_level_speller() -> Speller:
    byte_of = _byte_of_character()
    return lambda piece: bytes(byte_of[character] for character in piece if character in byte_of)


def _byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's table).

    Printable Latin-1 bytes stand for themselves; the others are numbered from U+0100 in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + number): byte for number, byte in enumerate(others)})
    return table
