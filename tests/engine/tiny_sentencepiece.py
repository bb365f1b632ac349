"""SentencePiece tokenizers for tests: a tiny one with Llama 2's settings, and Llama 2's own where given.

Llama 2's licence forbids shipping its tokenizer: LLAMACORD_TOKENIZER names the file.
"""

from __future__ import annotations

import functools
import io
import os
import tempfile
from pathlib import Path

import pytest
import sentencepiece

from engine.text.tokenizer import SentencePieceTokenizer

SPECIAL_IDS = {"<s>": 1, "</s>": 2}
LLAMA2_PATH = os.environ.get("LLAMACORD_TOKENIZER", "")
NEEDS_LLAMA2 = pytest.mark.skipif(
    not LLAMA2_PATH, reason="LLAMACORD_TOKENIZER does not name Llama 2's tokenizer.model"
)
_SENTENCES = (
    "The user asks the assistant a question and the system answers it in a few words.",
    "[INST] <<SYS>> You are a helpful, respectful and honest assistant. <</SYS>> Hello! [/INST]",
    "Grüße aus Köln, señor! Ça va très bien. 你好，世界。 12 + 30 = 42",
)


@functools.cache
def tiny_model_bytes() -> bytes:
    """Train a model of a few hundred tokens with byte fallback and no normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 10),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def tiny_processor() -> sentencepiece.SentencePieceProcessor:
    """Return the tiny model as the library itself has it."""
    return sentencepiece.SentencePieceProcessor(model_proto=tiny_model_bytes())


@functools.cache
def tiny_sentencepiece() -> SentencePieceTokenizer:
    """Return the tiny model as the engine has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(tiny_model_bytes())
        return SentencePieceTokenizer(path, SPECIAL_IDS)


def llama2_processor() -> sentencepiece.SentencePieceProcessor:
    """Return Llama 2's own model as the library itself has it."""
    return sentencepiece.SentencePieceProcessor(model_file=LLAMA2_PATH)


@functools.cache
def llama2_tokenizer() -> SentencePieceTokenizer:
    """Return Llama 2's own tokenizer as the engine has it."""
    return SentencePieceTokenizer(Path(LLAMA2_PATH), SPECIAL_IDS)
