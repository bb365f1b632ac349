"""Are a GGUF file's tokens those of llama.cpp, however its tokenizer splits words?

    python -m benchmarks.tokens_vs_llamacpp

Writes a tiny file with each way to split words that is known here, trained on a few sentences, and with a
SentencePiece model, and compares what both make of texts of many kinds. One difference is known: for tekken
and gpt-4o llama.cpp takes all letters beyond ASCII for small and capital at once, which the models' own
expressions do not; here they are followed.

It needs `pip install llama-cpp-python` beside the development requirements.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import print_table
from engine.convert.gguf_source import GGUFSource
from engine.convert.gguf_tokenizer import SPLITS, WHOLE_WORDS_FIRST
from engine.text.tokenizer import load_tokenizer
from tests.engine.convert.test_gguf_tokenizer import gguf_fields
from tests.engine.tiny_gguf import TinyGGUF
from tests.engine.tiny_model import tiny_config
from tests.engine.tiny_sentencepiece import tiny_processor
from tests.engine.tokenizer_kinds import byte_level

TEXTS = (
    "Hello, world! The user asks the assistant a question and the system answers it in a few words.",
    "  two leading,   runs   of them, and one behind ",
    "line\nbreaks\n\nand\ttabs\r\n\t\t x \t",
    "don't DON'T I'LL you're 1234567 3.14",
    "emoji 🦙🇩🇪👩‍👩‍👧 and 漢字かな 한국어 你好，世界。",
    "def f(x):\n    return x ** 2  # code\n\n\n",
    "camelCase HTTPServer JSONParser A's a's",
    "ÉCOLE École ÉÉa éÉ's",
    "a/b\\c//\n\n /x $5 <=> ^~| `b` -- ... !!!\n\n  \n x",
    "e\u0301 \u00a0 \u3000x \u2028y ٣٤٥ ½ ² 一二三 «quoted»",
)


def files() -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Give a name, a number of tokens and the fields of each tokenizer."""
    for name, splits in SPLITS.items():
        model = json.loads(byte_level(*splits, whole_words_first=name in WHOLE_WORDS_FIRST).to_str())["model"]
        pieces = [*sorted(model["vocab"], key=model["vocab"].__getitem__), "<|bos|>", "<|eos|>"]
        size = len(pieces)
        yield (
            name,
            size,
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": name,
                "tokenizer.ggml.tokens": pieces,
                "tokenizer.ggml.token_type": [1] * (size - 2) + [3, 3],
                "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
                "tokenizer.ggml.bos_token_id": size - 2,
                "tokenizer.ggml.eos_token_id": size - 1,
            },
        )
    processor = tiny_processor()
    for is_spaced in (True, False):
        fields = gguf_fields(processor) | {"tokenizer.ggml.add_space_prefix": is_spaced}
        yield f"SentencePiece, {'' if is_spaced else 'not '}spaced", processor.vocab_size(), fields


def differing(size: int, fields: Mapping[str, Any]) -> list[str]:
    """Return the texts of which the two make different tokens."""
    import llama_cpp

    file = TinyGGUF(tiny_config(vocab_size=size))
    for key in [key for key in file.fields if key.startswith("tokenizer.")]:
        del file.fields[key]
    file.fields |= fields
    with tempfile.TemporaryDirectory() as scratch:
        path = file.save(Path(scratch) / "tiny.gguf")
        theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        ours = load_tokenizer(Path(scratch), GGUFSource(path).save_tokenizer(Path(scratch)))
        return [
            text
            for text in TEXTS
            if theirs.tokenize(text.encode(), add_bos=False, special=False) != ours.encode(text)
        ]


def main() -> None:
    """Compare, and print a table."""
    import llama_cpp

    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    rows = []
    for name, size, fields in files():
        wrong = differing(size, fields)
        rows.append([name, f"{len(TEXTS) - len(wrong)} of {len(TEXTS)}", "; ".join(map(repr, wrong))])
    print_table("Tokens equal to those of llama.cpp", ["tokenizer", "texts", "different"], rows)


if __name__ == "__main__":
    main()
