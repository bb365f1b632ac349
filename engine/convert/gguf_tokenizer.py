"""Turns the tokenizer inside a GGUF file into a file of its own: byte-level BPE or SentencePiece."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model
from tokenizers import decoders, models, pre_tokenizers

from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError

Field = Callable[[str], Any]
"""Returns a GGUF metadata field; raises `ModelFormatError` when it is missing."""

_CONTROL_TOKEN, _USER_DEFINED_TOKEN = 3, 4
"""GGUF's token types are SentencePiece's piece types: 1 normal, 2 unknown, 3 control, 4 added, 6 byte."""

_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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
