"""Chat formats: from a dialog to the token ids that a fine-tuned model was trained on.

Pure apart from the tokenizer. Control tokens are placed here by id and never come from text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from engine.describing.manifest import ChatSpec
from engine.errors import (
    ModelFormatError,
    NoChatFormatError,
    PromptError,
    PromptTooLongError,
    UnsafePromptError,
)
from engine.text.chat_choice import check_tokens, named_chat
from engine.text.jinja_format import JinjaFormat
from engine.text.tokenizer import Tokenizer
from engine.types import ChatMessage, Prompt, Reasoning, is_open_after, marks_in


class ChatFormat(Protocol):
    """Turns dialogs into ids."""

    stop_ids: frozenset[int]
    """Ids that end the model's turn."""
    ends_turns: bool
    """Whether it writes one of them after each answer."""
    answer_head: str
    """What it writes before an answer, as text."""

    def encode(self, dialog: Sequence[ChatMessage]) -> list[int]:
        """Return the ids of an alternating dialog that ends with the user, ready for the answer."""

    def fit(self, dialog: Sequence[ChatMessage], max_tokens: int) -> tuple[list[int], int]:
        """Encode `dialog` without the fewest of its oldest turns, so that `max_tokens` are enough.

        Return the ids and how many turns were left out; with too many ids where not even the last turn fits.
        Takes time in proportion to what is kept.
        """

    def is_safe(self, text: str) -> bool:
        """Tell whether `encode` takes `text` as a message."""


class ChatMLFormat:
    """`<|im_start|>role\\n…<|im_end|>\\n` for each message, as SmolLM2, Qwen and others are trained on."""

    ends_turns = True
    answer_head = ""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        check_tokens(ChatSpec("chatml"), tokenizer.special_ids)
        self._start = tokenizer.special_ids["<|im_start|>"]
        self._end = tokenizer.special_ids["<|im_end|>"]
        self.stop_ids = frozenset({self._end, *stop_ids})
        self._newline = tokenizer.encode_inside("\n")

    def encode(self, dialog: Sequence[ChatMessage]) -> list[int]:
        ids: list[int] = []
        for message in dialog:
            ids += self._encode(message)
        return [*ids, self._start, *self._tokenizer.encode_inside("assistant\n")]

    def fit(self, dialog: Sequence[ChatMessage], max_tokens: int) -> tuple[list[int], int]:
        return _fit(dialog, max_tokens, self.encode, lambda turn: sum(len(self._encode(one)) for one in turn))

    def is_safe(self, text: str) -> bool:  # noqa: ARG002 - text cannot become control here
        return True

    def _encode(self, message: ChatMessage) -> list[int]:
        ids = self._tokenizer.encode_inside(f"{message.role}\n{message.content}")
        return [self._start, *ids, self._end, *self._newline]


class Llama2Format:
    """`[INST] … [/INST]` with the system prompt folded into the first user message.

    Follows `chat_completion` of meta-llama's `generation.py`: every user/assistant pair is encoded by
    itself between BOS and EOS, the last user message after a BOS, and messages that contain the format's
    own tags are refused.
    """

    ends_turns = True
    answer_head = ""
    _TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

    def __init__(
        self, tokenizer: Tokenizer, bos_id: int, eos_id: int, stop_ids: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._bos = bos_id
        self._eos = eos_id
        self.stop_ids = frozenset({eos_id, *stop_ids})

    def encode(self, dialog: Sequence[ChatMessage]) -> list[int]:
        self._refuse_tags(dialog)
        texts = self._fold_system(dialog)
        ids: list[int] = []
        for at in range(0, len(texts), 2):
            ids += self._encode(*texts[at : at + 2])
        return ids

    def fit(self, dialog: Sequence[ChatMessage], max_tokens: int) -> tuple[list[int], int]:
        """Refuse tags in what is left out, too."""
        self._refuse_tags(dialog)
        return _fit(
            dialog, max_tokens, self.encode, lambda turn: len(self._encode(*(one.content for one in turn)))
        )

    def is_safe(self, text: str) -> bool:
        return not any(tag in text for tag in self._TAGS)

    def _encode(self, user: str, answer: str | None = None) -> list[int]:
        """Return the ids of a turn; without an answer it is the last one."""
        asked = f"[INST] {user.strip()} [/INST]"
        if answer is None:
            return [self._bos, *self._tokenizer.encode(asked)]
        return [self._bos, *self._tokenizer.encode(f"{asked} {answer.strip()} "), self._eos]

    def _refuse_tags(self, dialog: Sequence[ChatMessage]) -> None:
        if not all(self.is_safe(message.content) for message in dialog):
            raise UnsafePromptError(
                f"Messages must not contain the model's control tags ({', '.join(self._TAGS)}). Remove them."
            )

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
    """Return the `chosen` format (see `named_chat`), or the one that a manifest names; None for a base model.

    Raises `ModelFormatError`.
    """
    chat = named_chat(chosen) or manifest.chat
    if chat.format is None:
        return None
    check_tokens(chat, tokenizer.special_ids)
    if chat.format == "chatml":
        return ChatMLFormat(tokenizer, {manifest.eos_id, *manifest.stop_ids})
    if chat.format == "llama-2":
        return Llama2Format(tokenizer, manifest.bos_id, manifest.eos_id, manifest.stop_ids)
    if chat.format == "jinja":
        return JinjaFormat(chat, tokenizer, manifest.bos_id, manifest.eos_id, manifest.stop_ids)
    raise ModelFormatError(f"This program knows no chat format called {chat.format!r}.")


def fit_prompt(
    chat_format: ChatFormat | None,
    dialog: Sequence[ChatMessage],
    max_tokens: int,
    answer_ids: Sequence[int] = (),
) -> Prompt:
    """Encode `dialog` in at most `max_tokens` ids; the oldest whole turns go first, the system message never.

    `answer_ids` are the beginning of an answer, to go on with.

    Raises `NoChatFormatError`, `UnsafePromptError`, `PromptTooLongError` when even the last turn does not
    fit, and `PromptError` for a dialog that does not alternate or does not end with the user.
    """
    if chat_format is None:
        raise NoChatFormatError(
            "The loaded model is a base model: it completes text and cannot chat. Choose a fine-tuned one."
        )
    _check_alternates(dialog)
    ids, num_turns = chat_format.fit(dialog, max_tokens - len(answer_ids))
    if len(ids) + len(answer_ids) > max_tokens:
        raise PromptTooLongError(len(ids) + len(answer_ids), max_tokens)
    return Prompt((*ids, *answer_ids), 2 * num_turns, is_continued=bool(answer_ids))


def _fit(
    dialog: Sequence[ChatMessage],
    max_tokens: int,
    encode: Callable[[Sequence[ChatMessage]], list[int]],
    num_ids: Callable[[Sequence[ChatMessage]], int],
) -> tuple[list[int], int]:
    """Fit a dialog whose every turn takes `num_ids` of its own, wherever it stands but at the beginning."""
    num_system = int(dialog[0].role == "system")
    num_turns = (len(dialog) - num_system) // 2

    def encode_without(num_dropped: int) -> list[int]:
        return encode([*dialog[:num_system], *dialog[num_system + 2 * num_dropped :]])

    # From the newest turn on, until these alone are too many: what is before them need not be encoded.
    least, num_newest = num_turns, num_ids(dialog[-1:])
    while num_newest <= max_tokens and least > 0:
        least -= 1
        num_newest += num_ids(dialog[num_system + 2 * least : num_system + 2 * least + 2])
    if least == 0 and len(ids := encode_without(0)) <= max_tokens:
        return ids, 0
    # Fewer turns take fewer tokens: bisect for the fewest to drop. (White space that opens a message counts
    # only in the turn that the system prompt is folded into: much of it may cost a turn too many.)
    ids = encode_without(num_turns)
    if len(ids) > max_tokens:
        return ids, num_turns
    low, high = 1, num_turns
    while low < high:
        middle = (low + high) // 2
        if middle >= least and len(candidate := encode_without(middle)) <= max_tokens:
            ids, high = candidate, middle
        else:
            low = middle + 1
    return ids, high


def _check_alternates(dialog: Sequence[ChatMessage]) -> None:
    messages = dialog[dialog[0].role == "system" :] if dialog else dialog
    expected = ("user", "assistant")
    alternates = all(message.role == expected[index % 2] for index, message in enumerate(messages))
    if not alternates or len(messages) % 2 == 0:
        raise PromptError("A dialog must alternate between user and assistant, and end with the user.")


def reasoning_of(chat: ChatSpec, chat_format: ChatFormat | None) -> Reasoning | None:
    """Return how a model marks what it thinks: as its folder says, or else its template."""
    marks = chat.reasoning or marks_in(chat.template)
    if not marks:
        return None
    opening, closing = marks
    is_open = chat_format is not None and is_open_after(chat_format.answer_head, marks)
    return Reasoning(opening, closing, is_open)
