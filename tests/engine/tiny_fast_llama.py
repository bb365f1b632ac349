"""The tiny SentencePiece model as a `tokenizer.json`, in the ways that Llama's has been written."""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers

from tests.engine.tiny_sentencepiece import tiny_processor

SCHEMES = ("normalizer", "always", "first")
"""The oldest way, and the newer ones by what they put a space before: every text, or the first of several."""


def fast_llama(scheme: str) -> tokenizers.Tokenizer:
    """Return the tiny SentencePiece model as tokenizers has it, in the way `scheme`."""
    processor = tiny_processor()
    size = processor.vocab_size()
    vocabulary = {processor.id_to_piece(index): index for index in range(size)}
    scores = {processor.id_to_piece(index): processor.get_score(index) for index in range(size)}
    pairs = [
        (piece[:cut], piece[cut:])
        for piece, index in vocabulary.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary
        and piece[cut:] in vocabulary
        and not (processor.is_byte(index) or processor.is_control(index) or processor.is_unknown(index))
    ]
    merges = sorted(pairs, key=lambda pair: -scores["".join(pair)])
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([*replace, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    return tokenizer
