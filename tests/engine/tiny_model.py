"""A tiny random Llama with a real tokenizer, converted in milliseconds: what engine tests run on.

folder = make_tiny_model(tmp_path / "model")  # fp32; 4 heads share 2 KV heads
folder = make_tiny_model(tmp_path / "model", Precision.INT8, num_kv_heads=4, tied=False)
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from engine.convert.converter import convert
from engine.convert.quantize import BlockQuantized
from engine.convert.source import FloatArray
from engine.describing.architecture import DecoderConfig, Precision, source_shapes
from engine.describing.manifest import ChatSpec, TokenizerSpec

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS_ID, EOS_ID = 1, 2
VOCAB_SIZE = 384
SYSTEM_PROMPT = "You are a tiny model."
_SENTENCES = (
    "The user asks the assistant a question and the system answers it in a few words.",
    "Water is made of hydrogen and oxygen, and there is a lot of it in the sea.",
    "You are a helpful assistant. Hello, how are you today? I am fine, thank you.",
    "Once upon a time there was a small model that knew only a few hundred tokens.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n",
    "Grüße aus Köln, señor! Ça va très bien. 你好，世界。 🙂",
)


def tiny_config(
    *, num_kv_heads: int = 2, tied: bool = True, context_length: int = 512, vocab_size: int = VOCAB_SIZE
) -> DecoderConfig:
    """Return dimensions with 3 layers and 4 heads; `num_kv_heads` 4 is multi-head attention."""
    return DecoderConfig(
        num_layers=3,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=16,
        vocab_size=vocab_size,
        context_length=context_length,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tied_embeddings=tied,
    )


class TinySource:
    """A `ModelSource` of random weights. The same seed and dimensions give the same model."""

    name = "tiny"
    bos_id = BOS_ID
    eos_id = EOS_ID
    stop_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] = MappingProxyType({})
    notes: tuple[str, ...] = ()

    def __init__(self, config: DecoderConfig | None = None, seed: int = 0) -> None:
        self.config = config or tiny_config()
        self.chat = ChatSpec("chatml", SYSTEM_PROMPT)
        self.origin = {"format": "random", "seed": str(seed)}
        self._seed = seed

    def tensor(self, name: str) -> FloatArray:
        shape = source_shapes(self.config)[name]
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        values = rng.standard_normal(shape)
        if len(shape) == 1:
            values = 1.0 + 0.2 * values
        elif name in ("embed", "head"):
            values *= 0.3
        else:
            values /= np.sqrt(shape[1])
        return values.astype(np.float32)

    def blocks(self, name: str) -> BlockQuantized | None:
        return None

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        return TokenizerSpec("bpe", "tokenizer.json", {piece: i for i, piece in enumerate(CONTROL_TOKENS)})


class ChangedSource(TinySource):
    """A source whose tensors pass through `change` on their way."""

    def __init__(self, change: Callable[[str, FloatArray], FloatArray]) -> None:
        super().__init__()
        self._change = change

    def tensor(self, name: str) -> FloatArray:
        return self._change(name, super().tensor(name))


def make_tiny_model(
    folder: Path,
    precision: Precision = Precision.FP32,
    *,
    num_kv_heads: int = 2,
    tied: bool = True,
    context_length: int = 512,
    seed: int = 0,
) -> Path:
    """Convert a tiny random model into the new folder `folder` and return it."""
    config = tiny_config(num_kv_heads=num_kv_heads, tied=tied, context_length=context_length)
    convert(TinySource(config, seed), folder, precision)
    return folder


@functools.cache
def tiny_tokenizer() -> tokenizers.Tokenizer:
    """Train a byte-level BPE in which control tokens are ordinary entries that no merge reaches."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    trained.train_from_iterator(_SENTENCES, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    if len(model["vocab"]) != VOCAB_SIZE:
        raise AssertionError(f"The sentences make {len(model['vocab'])} tokens, not {VOCAB_SIZE}.")
    tokenizer = tokenizers.Tokenizer(models.BPE(model["vocab"], merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def exchange_two_tokens(folder: Path) -> Path:
    """Let two tokens of a model's tokenizer change places, and return the folder."""
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    first, second = (re.search(rf'"{letter}": ?(\d+)', text) for letter in "ab")
    assert first is not None
    assert second is not None
    changed = text.replace(first[0], f'"a": {second[1]}').replace(second[0], f'"b": {first[1]}')
    path.write_text(changed, encoding="utf-8")
    return folder
