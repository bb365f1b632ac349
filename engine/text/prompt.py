"""Chat formats: from a dialog to the token ids that a fine-tuned model was trained on.

Pure apart from the tokenizer. Control tokens are placed here by id and never come from text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from engine.describing.manifest import ChatSpec
from engine.errors import (
    ModelFormatError,
    NoChatFormatError,
    PromptError,
    PromptTooLongError,
    UnsafePromptError,
)
from engine.text.guidance import META_SYSTEM_PROMPT
from engine.text.jinja_format import JinjaFormat
from engine.text.tokenizer import Tokenizer
from engine.types import ChatMessage, Prompt


class ChatFormat(Protocol):
    """Turns dialogs into ids."""

    stop_ids: frozenset[int]
    """Ids that end the model's turn."""

    def encode(self, dialog: Sequence[ChatMessage]) -> list[int]:
        """Return the ids of an alternating dialog that ends with the user, ready for the answer."""


class ChatMLFormat:
    """`<|im_start|>role\\n…<|im_end|>\\n` for each message, as SmolLM2, Qwen and others are trained on."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        try:
            self._start = tokenizer.special_ids["<|im_start|>"]
            self._end = tokenizer.special_ids["<|im_end|>"]
        except KeyError as error:
            raise ModelFormatError(f"The tokenizer lacks {error}, which the chat format needs.") from None
        self.stop_ids = frozenset({self._end, *stop_ids})
        self._newline = tokenizer.encode_inside("\n")

    def encode(self, dialog: Sequence[ChatMessage]) -> list[int]:
        ids: list[int] = []
        for message in dialog:
            ids += [self._start, *self._tokenizer.encode_inside(f"{message.role}\n{message.content}")]
            ids += [self._end, *self._newline]
        return [*ids, self._start, *self._tokenizer.encode_inside("assistant\n")]


class Llama2Format:
    """`[INST] … [/INST]` with the system prompt folded into the first user message.

    Follows `chat_completion` of meta-llama's `generation.py`: every user/assistant pair is encoded by
    itself between BOS and EOS, the last user message after a BOS, and messages that contain the format's
    own tags are refused.
    """

    _TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

    def __init__(
        self, tokenizer: Tokenizer, bos_id: int, eos_id: int, stop_ids: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._bos = bos_id
        self._eos = eos_id
        self.stop_ids = frozenset({eos_id, *stop_ids})

    def encode(self, dialog: Sequence[ChatMessage]) -> list[int]:
        if any(tag in message.content for message in dialog for tag in self._TAGS):
            raise UnsafePromptError(
                f"Messages must not contain the model's control tags ({', '.join(self._TAGS)}). Remove them."
            )
        turns = self._fold_system(dialog)
        ids: list[int] = []
        for user, answer in zip(turns[:-1:2], turns[1::2], strict=True):
            text = f"[INST] {user.strip()} [/INST] {answer.strip()} "
            ids += [self._bos, *self._tokenizer.encode(text), self._eos]
        return [*ids, self._bos, *self._tokenizer.encode(f"[INST] {turns[-1].strip()} [/INST]")]

    @staticmethod
    def _fold_system(dialog: Sequence[ChatMessage]) -> list[str]:
        if dialog[0].role != "system":
            return [message.content for message in dialog]
        first = f"<<SYS>>\n{dialog[0].content}\n<</SYS>>\n\n{dialog[1].content}"
        return [first, *(message.content for message in dialog[2:])]


class ChatModel(Protocol):
    """What a chat format needs to know of the model it is for."""

    @property
    def chat(self) -> ChatSpec: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def stop_ids(self) -> tuple[int, ...]: ...


def make_chat_format(manifest: ChatModel, tokenizer: Tokenizer, chosen: str = "") -> ChatFormat | None:
    """Return the `chosen` format, or the one that a manifest names; None for a base model.

    Raises `ModelFormatError`.
    """
    name = chosen or manifest.chat.format
    if name is None:
        return None
    if name == "chatml":
        return ChatMLFormat(tokenizer, {manifest.eos_id, *manifest.stop_ids})
    if name == "llama-2":
        return Llama2Format(tokenizer, manifest.bos_id, manifest.eos_id, manifest.stop_ids)
    if name == "jinja":
        template, stop_ids = manifest.chat.template, manifest.stop_ids
        return JinjaFormat(template, tokenizer, manifest.bos_id, manifest.eos_id, stop_ids)
    raise ModelFormatError(f"This program knows no chat format called {name!r}.")


def fit_prompt(
    chat_format: ChatFormat | None, dialog: Sequence[ChatMessage], max_tokens: int, begun: Sequence[int] = ()
) -> Prompt:
    """Encode `dialog` in at most `max_tokens` ids; the oldest whole turns go first, the system message never.

    `begun` are the ids of an answer that was begun, to go on with.

    Raises `NoChatFormatError`, `UnsafePromptError`, `PromptTooLongError` when even the last turn does not
    fit, and `PromptError` for a dialog that does not alternate or does not end with the user.
    """
    if chat_format is None:
        raise NoChatFormatError(
            "The loaded model is a base model: it completes text and cannot chat. Choose a fine-tuned one."
        )
    system, messages = _split_system(dialog)

    def encode_without(num_dropped_turns: int) -> Prompt:
        kept = messages[2 * num_dropped_turns :]
        ids = (*chat_format.encode([*system, *kept]), *begun)
        return Prompt(ids, 2 * num_dropped_turns, is_continued=bool(begun))

    prompt = encode_without(0)
    if len(prompt.ids) <= max_tokens:
        return prompt
    # Fewer turns take fewer tokens: bisect for the fewest to drop. (White space that opens a message counts
    # only in the turn that the system prompt is folded into: much of it may cost a turn too many.)
    low, high = 1, len(messages) // 2
    prompt = encode_without(high)
    if len(prompt.ids) > max_tokens:
        raise PromptTooLongError(len(prompt.ids), max_tokens)
    while low < high:
        middle = (low + high) // 2
        candidate = encode_without(middle)
        if len(candidate.ids) <= max_tokens:
            prompt, high = candidate, middle
        else:
            low = middle + 1
    return prompt


def _split_system(dialog: Sequence[ChatMessage]) -> tuple[list[ChatMessage], list[ChatMessage]]:
    has_system = bool(dialog) and dialog[0].role == "system"
    system, messages = list(dialog[:has_system]), list(dialog[has_system:])
    expected = ("user", "assistant")
    alternates = all(message.role == expected[index % 2] for index, message in enumerate(messages))
    if not alternates or len(messages) % 2 == 0:
        raise PromptError("A dialog must alternate between user and assistant, and end with the user.")
    return system, messages


_CHATML_START, _CHATML_END = "<|im_start|>", "<|im_end|>"
_BEYOND_CHATML = ("bos_token", "trim", "strip", "split", "raise_exception", "tools", "<think>")
"""A template that speaks of these writes more than the bare format, or other text."""


def detect_chat(template: str) -> ChatSpec:
    """Return the chat format that a Jinja template describes: a known one, or the template itself.

    Without a template the format is None.
    """
    if _CHATML_START in template and not any(word in template for word in _BEYOND_CHATML):
        return ChatSpec("chatml", _chatml_system_prompt(template))
    if "[INST]" in template and "<<SYS>>" in template:
        return llama2_chat()
    return ChatSpec("jinja", template=template) if template.strip() else ChatSpec(None)


def llama2_chat() -> ChatSpec:
    """Return Llama 2's format with Meta's system prompt."""
    return ChatSpec("llama-2", META_SYSTEM_PROMPT)


def _chatml_system_prompt(template: str) -> str:
    """Return the system message that a ChatML template adds by itself, or nothing."""
    for opening in (f"{_CHATML_START}system\\n", f"{_CHATML_START}system\n"):
        if opening in template:
            text = template.split(opening, 1)[1].split(_CHATML_END, 1)[0]
            # What is put together from variables is no fixed text.
            return "" if "{{" in text or "'" in text else text
    return ""
