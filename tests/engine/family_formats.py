"""A chat format over each kind of tokenizer that published models have, made once for all tests."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from engine.convert.hf_tokenizer import HuggingFaceTokenizer
from engine.text.prompt import ChatFormat, make_chat_format
from engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine.prompt_cases import FAMILIES, PromptModel
from tests.engine.tokenizer_kinds import KINDS

_FAMILY_OF = {
    "llama-2": "vicuna",
    "mistral": "mistral-v3",
    "always": "yi",
    "phi-3": "phi-3",
    "gemma": "gemma 3",
    "llama-3": "llama-3",
    "qwen2": "qwen 3",
    "tekken": "mistral small",
    "gpt-4o": "phi-4-mini",
    "dbrx": "phi-4",
    "smollm": "granite",
    "gpt-2": "smollm",
    "deepseek-llm": "deepseek",
}
"""Of each kind, whose template it is tried with."""


class FamilyFormat(NamedTuple):
    """A tokenizer, and a format over it."""

    tokenizer: Tokenizer
    chat_format: ChatFormat


@functools.cache
def family_formats() -> Mapping[str, FamilyFormat]:
    """Return a format for each kind of tokenizer, by its name."""
    return {kind: _made(kind, _FAMILY_OF[kind]) for kind in KINDS}


def _made(kind: str, family: str) -> FamilyFormat:
    _, template, control = FAMILIES[family]
    library = KINDS[kind].tokenizer(control)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for file, content in KINDS[kind].folder(template, control).items():
            (folder / file).write_bytes(content)
        made = HuggingFaceTokenizer(folder, library.get_vocab_size())
        (eos_id,) = made.token_ids("eos_token")
        tokenizer = load_tokenizer(folder, made.save(folder, [eos_id]))
    chat_format = make_chat_format(PromptModel(made.chat, 0, eos_id), tokenizer)
    if chat_format is None:
        raise AssertionError(f"{family} has no chat format.")
    return FamilyFormat(tokenizer, chat_format)
