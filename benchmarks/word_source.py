"""A tiny model of random weights whose tokens are words: for the text around a model, not for what it says."""

from __future__ import annotations

import json
from pathlib import Path

from engine.architecture import DecoderConfig
from engine.convert.synthetic_source import SyntheticSource
from engine.manifest import TokenizerSpec


class WordSource(SyntheticSource):
    """A `ModelSource` of one small layer. Each token is a made-up word with the space before it."""

    def __init__(self, vocab_size: int, context_length: int) -> None:
        super().__init__(
            DecoderConfig(
                num_layers=1,
                hidden_size=32,
                intermediate_size=32,
                num_heads=2,
                num_kv_heads=2,
                head_dim=16,
                vocab_size=vocab_size,
                context_length=context_length,
                rope_theta=1e4,
                rms_norm_eps=1e-5,
                tied_embeddings=True,
            )
        )

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        words = {f"\u2581w{index}": index for index in range(self.config.vocab_size)}
        described = {"model": {"type": "BPE", "vocab": words, "merges": []}}
        (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
        return TokenizerSpec("bpe-metaspace", "tokenizer.json")
