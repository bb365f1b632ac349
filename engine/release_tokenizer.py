"""The tokenizer of a released Llama-2-Onnx model, and whether it is that model's."""

from __future__ import annotations

from engine.errors import ModelFormatError
from engine.manifest import TokenizerSpec
from engine.release_files import ReleaseFiles
from engine.tokenizer import SentencePieceTokenizer, Tokenizer


def open_release_tokenizer(files: ReleaseFiles) -> SentencePieceTokenizer:
    """Open a release's tokenizer, which must have Llama's control tokens. Raises `ModelFormatError`."""
    return SentencePieceTokenizer(files.tokenizer, release_tokenizer_spec(files).special_ids)


def check_vocabulary(files: ReleaseFiles, num_embeddings: int, tokenizer: Tokenizer) -> None:
    """Raise `ModelFormatError` unless there is an embedding for each token."""
    if tokenizer.vocab_size != num_embeddings:
        raise ModelFormatError(
            f"{files.tokenizer} has {tokenizer.vocab_size} tokens for {num_embeddings} embeddings. "
            "It is another model's."
        )


def release_tokenizer_spec(files: ReleaseFiles) -> TokenizerSpec:
    """Describe a release's tokenizer: Llama 2 has `<s>` as 1 and `</s>` as 2."""
    return TokenizerSpec("sentencepiece", files.tokenizer.name, {"<s>": 1, "</s>": 2})
