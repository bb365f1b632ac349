"""Tokenizers, templates and dialogs that transformers was asked about: benchmarks/record_hf_reference.py."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import tokenizers

from engine.describing.manifest import ChatSpec
from tests.engine import chat_templates
from tests.engine.tiny_fast_llama import SCHEMES, fast_llama
from tests.engine.tiny_model import CONTROL_TOKENS, tiny_tokenizer

CONTENTS = (
    "How are you?",
    "  leading and trailing \n",
    "",
    "two\n\nlines\tand a tab",
    "🙂 你好 ﬁ e\u0301",
    "def f(x):\n    return x  # code",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A tokenizer with a template."""

    library: Callable[[], tokenizers.Tokenizer]
    bos_token: str
    eos_token: str
    template: str
    takes_system: bool = True


def dialog_of(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    start = [] if system is None else [{"role": "system", "content": system}]
    roles = itertools.cycle(("user", "assistant"))
    return [*start, *({"role": role, "content": text} for role, text in zip(roles, contents, strict=False))]


DIALOGS = [
    *(dialog_of(text) for text in CONTENTS),
    *(dialog_of("Hi", system=text) for text in CONTENTS),
    *(dialog_of(text, text, text) for text in CONTENTS),
    dialog_of(*CONTENTS[:5], system="Be brief."),
]


def byte_level() -> tokenizers.Tokenizer:
    """Return the tiny byte-level BPE with its control tokens declared."""
    tokenizer = tokenizers.Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return tokenizer


CASES = {
    **{
        f"byte-level, {name.lower()}": Case(
            byte_level, "<|endoftext|>", "<|im_end|>", getattr(chat_templates, name)
        )
        for name in ("CHATML", "TRIMMING", "THINKING")
    },
    **{
        f"{scheme}, {name.lower()}": Case(
            functools.partial(fast_llama, scheme),
            "<s>",
            "</s>",
            getattr(chat_templates, name),
            takes_system=name == "ZEPHYR",
        )
        for scheme in SCHEMES
        for name in ("ZEPHYR", "WITHOUT_SYSTEM")
    },
}


@dataclass(frozen=True, slots=True)
class PromptModel:
    """A `ChatModel` of its bare values."""

    chat: ChatSpec
    bos_id: int
    eos_id: int
    stop_ids: tuple[int, ...] = ()
