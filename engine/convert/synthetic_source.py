"""A source of random weights, to measure how fast a shape runs without having a model of it."""

from __future__ import annotations

import json
from itertools import chain, islice
from pathlib import Path

import numpy as np

from engine.architecture import DecoderConfig
from engine.convert.source import FloatArray, tensor_shape
from engine.manifest import ChatSpec, TokenizerSpec

_PATTERN_SIZE = 2**20
"""Random numbers that are repeated: making billions would take longer than measuring."""

_CHARACTERS = (range(0x4E00, 0xA000), range(0x20000, 0x2A6E0))
"""Of which each token is one, so that text and tokens tell each other."""


class SyntheticSource:
    """A `ModelSource` whose words mean nothing: each is a character of its own."""

    name = "synthetic"
    bos_id = 0
    eos_id = 1
    stop_ids: tuple[int, ...] = ()

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.chat = ChatSpec(None)
        self.origin = {"format": "synthetic"}
        self._pattern = np.random.default_rng(0).standard_normal(_PATTERN_SIZE, np.float32)

    def tensor(self, name: str) -> FloatArray:
        shape = tensor_shape(self.config, name)
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return np.resize(self._pattern, shape) / np.float32(np.sqrt(shape[1]))

    def blocks(self, name: str) -> None:
        """There is nothing quantised here."""

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        characters = islice(map(chr, chain(*_CHARACTERS)), self.config.vocab_size)
        vocabulary = {character: index for index, character in enumerate(characters)}
        described = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
        (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
        return TokenizerSpec("bpe-metaspace", "tokenizer.json")
