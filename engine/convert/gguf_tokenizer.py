"""Makes a tokenizer's file of what a GGUF file says of it: byte-level BPE, or SentencePiece's BPE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model
from tokenizers import decoders, models, pre_tokenizers

from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError

Field = Callable[[str, Any], Any]
"""Returns a metadata field, or the default; without one (None) it raises `ModelFormatError`."""
_CONTROL_TOKEN, _USER_DEFINED_TOKEN = 3, 4
"""GGUF's token types are SentencePiece's piece types: 1 normal, 2 unknown, 3 control, 4 added, 6 byte."""
_SPACE = "▁"
"""How SentencePiece writes a space."""

# How words are split before their bytes are merged, as the models' own files have it. Each expression splits
# what the ones before it left.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"


def _words(digits: str) -> str:
    return rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased_words(digits: str, contractions: str = "") -> str:
    """Words that end where small letters are followed by capitals."""
    endings = f"(?:{contractions})?" if contractions else ""
    return (
        f"{_BEFORE}{_UPPER}*{_LOWER}+{endings}|{_BEFORE}{_UPPER}+{_LOWER}*{endings}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


_LLAMA_3 = (_words(r"\p{N}{1,3}"),)
_QWEN_2 = (_words(r"\p{N}"),)
_DIGITS_FIRST = (r"\p{N}", _GPT_2)
_HAN = "[一-龥\u0800-一가-\ud7ff]+"
SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT_2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT_2, "[0-9][0-9][0-9]"),
    "deepseek-llm": (
        r"[\r\n]",
        r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
        r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
        r"\s+$",
        _HAN,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}"),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
    ),
    "tekken": (_cased_words(r"\p{N}"),),
    "gpt-4o": (_cased_words(r"\p{N}{1,3}", _CONTRACTIONS),),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA_3),
    **dict.fromkeys(("smaug-bpe", "dbrx"), _LLAMA_3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN_2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_FIRST
    ),
    **dict.fromkeys(("phi-2", "mpt", "olmo", "exaone4"), (_GPT_2,)),
    "llama4": (_cased_words(r"\p{N}{1,3}", _CONTRACTIONS),),
}
"""By their GGUF name. An unknown one is refused: guessing would garble text."""
WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"}
"""These look a word up before they merge its pieces."""


def save_tokenizer(
    field: Field,
    folder: Path,
    is_control: Callable[[str, int], bool] = lambda _token, _id: False,
    *,
    strips_right: bool = False,
) -> TokenizerSpec:
    """Write the tokenizer's file into `folder` and describe it. Raises `ModelFormatError`.

    is_control: whether a token that the file calls an added one, given with its id, is a control token: not
    all files mark them. strips_right: whether control tokens swallow the white space on their right, which no
    file says.
    """
    pieces: list[str] = field("tokenizer.ggml.tokens", None)
    types: list[int] = list(field("tokenizer.ggml.token_type", None))
    if len(types) != len(pieces):
        raise ModelFormatError(f"The tokenizer has {len(pieces)} tokens and {len(types)} token types.")
    for i, piece in enumerate(pieces):
        if types[i] == _USER_DEFINED_TOKEN and is_control(piece, i):
            types[i] = _CONTROL_TOKEN
    special = {piece: i for i, piece in enumerate(pieces) if types[i] == _CONTROL_TOKEN}
    kind = field("tokenizer.ggml.model", None)
    if kind == "gpt2":
        added = [piece for i, piece in enumerate(pieces) if types[i] == _USER_DEFINED_TOKEN]
        _save_bpe(field, pieces, added, folder / "tokenizer.json")
        spec = TokenizerSpec("bpe", "tokenizer.json", special)
    elif kind == "llama":
        is_spaced = bool(field("tokenizer.ggml.add_space_prefix", True))
        scores = field("tokenizer.ggml.scores", None)
        _save_sentencepiece(pieces, types, scores, folder / "tokenizer.model", is_spaced=is_spaced)
        spec = TokenizerSpec("sentencepiece", "tokenizer.model", special)
    else:
        raise ModelFormatError(f"The tokenizer is of the kind {kind!r}, which is not supported.")
    return replace(spec, rstrip=tuple(special.keys() - _NEVER_STRIPPING)) if strips_right else spec


_NEVER_STRIPPING = {"<unk>", "<s>", "<|endoftext|>"}


def _save_bpe(field: Field, pieces: list[str], added: list[str], path: Path) -> None:
    pre = str(field("tokenizer.ggml.pre", "default"))
    if pre not in SPLITS:
        raise ModelFormatError(f"The tokenizer splits text in the way {pre!r}, which is not supported.")
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges", None)]
    # Control tokens stay ordinary vocabulary that no merge reaches: text can never become one.
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS_FIRST))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(tokenizers.Regex(split), "isolated") for split in SPLITS[pre]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # What was added to the trained tokens is found in text as it stands.
    tokenizer.add_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in added])
    tokenizer.save(str(path))


def _save_sentencepiece(
    pieces: list[str], types: list[int], scores: list[float], path: Path, *, is_spaced: bool
) -> None:
    """Write a SentencePiece BPE with byte fallback; `is_spaced`: whether it puts a space before a text."""
    model = sentencepiece_model.ModelProto()
    written = set(pieces)
    for piece, kind, score in zip(pieces, types, scores, strict=True):
        # Files have plain spaces in added pieces, such as Gemma's runs of them; SentencePiece seeks its mark.
        marked = piece.replace(" ", _SPACE) if kind == _USER_DEFINED_TOKEN else piece
        model.pieces.add(piece=piece if marked in written else marked, score=score, type=kind)
    model.trainer_spec.model_type = sentencepiece_model.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = is_spaced
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    path.write_bytes(model.SerializeToString())
