"""Tokenizers, templates and dialogs that transformers was asked about: benchmarks/record_hf_reference.py.

The templates are our own, in the manner of those that models of each family come with; for published ones
there is benchmarks/published_templates.py.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tokenizers

from engine.describing.manifest import ChatSpec
from engine.text.chat_choice import classic_templates
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

_THOUGHT = "<think>\nHm.\n</think>\n\nFine."
ABOUT_THINKING = [
    dialog_of("How are you? /no_think"),
    dialog_of("How are you? /think", system="Be brief. /no_think"),
    dialog_of("How are you?", "Fine.", "Why? /think", system="/no_think"),
    dialog_of("How are you?", _THOUGHT, "Why?"),
    dialog_of("How are you?", _THOUGHT, "Why?", _THOUGHT, "Why?", system="Be brief."),
]
"""Dialogs in which templates find what they look for."""


@dataclass(frozen=True, slots=True)
class PromptModel:
    """A `TextModel` of its bare values."""

    chat: ChatSpec
    bos_id: int
    eos_id: int
    stop_ids: tuple[int, ...] = ()
    vocab_size: int = 0


_CHATML = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_INST = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
_TURNS = ("<start_of_turn>", "<end_of_turn>")
_GRANITE = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
_DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>")
FAMILIES: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "vicuna": (("llama-2", "always"), classic_templates()["vicuna"], ()),
    "alpaca": (("llama-2", "mistral"), classic_templates()["alpaca"], ()),
    "zephyr": (("llama-2", "mistral"), classic_templates()["zephyr"], ()),
    "mistral-v1": (("llama-2", "mistral"), classic_templates()["mistral-v1"], ()),
    "mistral-v3": (("mistral",), classic_templates()["mistral-v3"], _INST),
    "mistral-tekken": (("tekken",), classic_templates()["mistral-tekken"], _INST),
    "mistral small": (("tekken",), chat_templates.MISTRAL_SMALL, _INST),
    "mistral nemo": (("tekken", "mistral"), chat_templates.MISTRAL_NEMO, _INST),
    "llama-3": (("llama-3", "dbrx"), classic_templates()["llama-3"], _HEADERS),
    "llama 2 of another": (("llama-2",), chat_templates.VIGOGNE, ()),
    "gemma": (("gemma",), classic_templates()["gemma"], _TURNS),
    "gemma 3": (("gemma",), chat_templates.GEMMA_3, _TURNS),
    "phi-3": (("phi-3",), classic_templates()["phi-3"], _ROLES),
    "phi-4": (("dbrx", "gpt-4o"), chat_templates.PHI_4, (*_CHATML, "<|im_sep|>")),
    "phi-4-mini": (("gpt-4o",), chat_templates.PHI_4_MINI, _ROLES),
    "qwen 2.5": (("qwen2",), chat_templates.QWEN_2_5, _CHATML),
    "qwen 3": (("qwen2",), chat_templates.QWEN_3, _CHATML),
    "yi": (("always", "qwen2"), chat_templates.YI, _CHATML),
    "smollm": (("smollm", "llama-3", "gpt-2"), chat_templates.QWEN_2_5, _CHATML),
    "granite": (
        ("smollm",),
        chat_templates.GRANITE,
        _GRANITE,
    ),
    "deepseek": (("deepseek-llm",), chat_templates.DEEPSEEK, _DEEPSEEK),
    "olmo 2": (("dbrx",), chat_templates.OLMO_2, ()),
}
"""Kinds of tokenizer (`tokenizer_kinds.py`), template and control tokens."""
FAMILY_CASES = [(name, kind) for name, (kinds, _, _) in FAMILIES.items() for kind in kinds]


@dataclass(frozen=True, slots=True)
class Switched:
    """A template that can switch thinking, its control tokens and what it calls the switch.

    keeps_thoughts: whether it leaves what was thought before in the dialog.
    """

    template: str
    control: tuple[str, ...]
    switch: str = "enable_thinking"
    keeps_thoughts: bool = False

    def dialogs(self) -> list[list[dict[str, str]]]:
        return [*DIALOGS[::5], *(ABOUT_THINKING[:3] if self.keeps_thoughts else ABOUT_THINKING)]


SWITCHED = {
    "qwen 3": Switched(chat_templates.QWEN_3, _CHATML),
    "smollm 3": Switched(chat_templates.SMOLLM_3, _CHATML, keeps_thoughts=True),
    "granite 3": Switched(chat_templates.GRANITE_3, _GRANITE, "thinking", keeps_thoughts=True),
    "deepseek 3": Switched(chat_templates.DEEPSEEK_3, _DEEPSEEK, "thinking"),
    "minicpm 5": Switched(chat_templates.MINICPM_5, _CHATML),
}
"""All tried with the kind of tokenizer that has marks for thinking (`qwen2`), in each state of the switch."""
SWITCHED_CASES = [(name, thinking) for name in SWITCHED for thinking in (None, True, False)]


def digest(ids: Sequence[int]) -> str:
    """Return what tells lists of ids apart, in a few characters."""
    return f"{len(ids)} {hashlib.sha256(' '.join(map(str, ids)).encode()).hexdigest()[:12]}"
