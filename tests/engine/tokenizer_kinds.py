"""Small tokenizers of the kinds that published models have, as their folders hold them.

Each is trained in a blink on a few sentences, and is in all else as the real one: how words are split, what
is put before a text, whole words before merges, added tokens that swallow white space.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from tests.engine.tiny_fast_llama import fast_llama
from tests.engine.tiny_sentencepiece import tiny_model_bytes

_SENTENCES = (
    "The user asks the assistant a question and the system answers it in a few words. How are you?",
    "You are a helpful assistant. Be brief. Don't say what you don't know, they'd say 12345 or 2026.",
    "def f(x):\n    return x  # code\n\n\nprint(f(1))\n\tif a == b:\n\t\tpass\n",
    "Grüße aus Köln, señor! Ça va très bien. 你好，世界。 ÉCOLE HelloWorld camelCase JSONParser 🙂",
    "<|user|> [INST] assistant: ### Instruction:\n ### Response:\n USER: ASSISTANT: Human: Bot:\n\n",
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer: its trained part, what begins and ends texts, its class in transformers."""

    library: Callable[[], tokenizers.Tokenizer]
    bos_token: str | None
    eos_token: str
    tokenizer_class: str = "PreTrainedTokenizerFast"
    legacy: bool | None = None
    swallows_right: bool = False
    """Whether its control tokens swallow the white space on their right, but for those that begin and end."""
    plain: tuple[str, ...] = ()
    """Added tokens that are found in text."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What lies beside it."""

    def tokenizer(self, control: Iterable[str] = ()) -> tokenizers.Tokenizer:
        """Return it with these control tokens added."""
        made = tokenizers.Tokenizer.from_str(self.library().to_str())
        own = dict.fromkeys(text for text in (self.bos_token, self.eos_token) if text)
        made.add_special_tokens([AddedToken(text, normalized=False) for text in own])
        others = [text for text in dict.fromkeys(control) if text not in own]
        made.add_special_tokens(
            [AddedToken(text, rstrip=self.swallows_right, normalized=False) for text in others]
        )
        made.add_tokens([AddedToken(text, normalized=False) for text in self.plain if text not in others])
        return made

    def folder(self, template: str, control: Iterable[str] = ()) -> dict[str, bytes]:
        """Return the files of a folder with this tokenizer and a chat template."""
        settings: dict[str, Any] = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "tokenizer_class": self.tokenizer_class,
        }
        if self.legacy is not None:
            settings["legacy"] = self.legacy
        return {
            **self.files,
            "tokenizer.json": self.tokenizer(control).to_str().encode(),
            "tokenizer_config.json": json.dumps(settings).encode(),
            **({"chat_template.jinja": template.encode()} if template else {}),
        }


@functools.cache
def byte_level(
    *splits: str, whole_words_first: bool = False, digits: bool = False, normalizes: bool = False
) -> tokenizers.Tokenizer:
    """Train a byte-level BPE whose words are split by `splits`, each of what those before it left."""
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits))
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(_SENTENCES, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    made = tokenizers.Tokenizer(models.BPE(model["vocab"], merges, ignore_merges=whole_words_first))
    made.normalizer = normalizers.NFC() if normalizes else None
    made.pre_tokenizer, made.decoder = trained.pre_tokenizer, decoders.ByteLevel()
    return made


@functools.cache
def gemma_like() -> tokenizers.Tokenizer:
    """Return a BPE over characters with byte fallback that puts no space before a text."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    trained.train_from_iterator(_SENTENCES, trainer)
    raw = json.loads(trained.to_str())
    model = raw["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    made = tokenizers.Tokenizer(
        models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer, made.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


_MODEL = {"tokenizer.model": tiny_model_bytes()}
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KINDS: dict[str, Kind] = {
    "llama-2": Kind(lambda: fast_llama("normalizer"), "<s>", "</s>", files=_MODEL),
    "mistral": Kind(lambda: fast_llama("first"), "<s>", "</s>", legacy=False, files=_MODEL),
    "always": Kind(lambda: fast_llama("always"), "<s>", "</s>", legacy=True),
    "phi-3": Kind(lambda: fast_llama("normalizer"), "<s>", "<|endoftext|>", swallows_right=True),
    "gemma": Kind(gemma_like, "<bos>", "<eos>", plain=("\n\n", "\n\n\n", "<table>")),
    "llama-3": Kind(
        lambda: byte_level(_WORDS, whole_words_first=True), "<|begin_of_text|>", "<|end_of_text|>"
    ),
    "qwen2": Kind(
        lambda: byte_level(_WORDS.replace("{1,3}", ""), normalizes=True),
        None,
        "<|im_end|>",
        plain=("<tool_call>", "</tool_call>", "<think>", "</think>"),
    ),
    "tekken": Kind(lambda: byte_level(_CASED % ("", "", ""), whole_words_first=True), "<s>", "</s>"),
    "gpt-4o": Kind(
        lambda: byte_level(_CASED % (_CONTRACTIONS, _CONTRACTIONS, "{1,3}")), "<|endoftext|>", "<|endoftext|>"
    ),
    "dbrx": Kind(lambda: byte_level(_WORDS), "<|endoftext|>", "<|im_end|>"),
    "smollm": Kind(lambda: byte_level(digits=True), "<|endoftext|>", "<|im_end|>"),
    "gpt-2": Kind(byte_level, "<|endoftext|>", "<|endoftext|>"),
    "deepseek-llm": Kind(
        lambda: byte_level(
            r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}"
        ),
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
}
