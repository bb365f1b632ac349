"""All that lies between text and tokens for one model: the same where it runs and where it is only asked.

Knows nothing of weights and of how an answer is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Protocol

from engine.errors import ModelFormatError
from engine.text.chat_choice import named_chat
from engine.text.detokenizer import padded
from engine.text.jinja_format import JinjaFormat
from engine.text.prompt import ChatFormat, ChatModel, fit_prompt, make_chat_format, reasoning_of
from engine.text.tokenizer import RememberingTokenizer, Tokenizer
from engine.types import ChatMessage, Prompt, Reasoning

_BREAK = "\n"
"""Put before a text so that a tokenizer adds no space to it."""


class TextModel(ChatModel, Protocol):
    """What is needed to know of a model."""

    @property
    def vocab_size(self) -> int: ...


class ModelText:
    """Makes prompts of dialogs. chosen: a chat format in the place of the model's own (`named_chat`).

    Raises `ModelFormatError`.
    """

    def __init__(self, model: TextModel, tokenizer: Tokenizer, chosen: str = "") -> None:
        self.tokenizer = RememberingTokenizer(tokenizer)
        self.format = make_chat_format(model, self.tokenizer, chosen)
        self.chat = named_chat(chosen) or model.chat
        self.reasoning = reasoning_of(self.chat, self.format)
        self.thinks: bool | None = None
        """Whether it thinks where nobody says whether it shall; None where nobody can."""
        self._told: Mapping[bool, ChatFormat] = {}
        """The format told to have it think, and not to, as far as that writes something else."""
        self._find_switch()
        self.switched = {told: reasoning_of(self.chat, form) for told, form in self._told.items()}
        ends = frozenset({model.eos_id, *model.stop_ids})
        self.stop_ids = self.format.stop_ids if self.format else ends
        self.control_ids = self.stop_ids | frozenset(self.tokenizer.special_ids.values())
        self._vocab_size = model.vocab_size

    @property
    def ends_turns(self) -> bool:
        """Whether the chat format has a token for the end of an answer."""
        return self.format is not None and self.format.ends_turns

    def _find_switch(self) -> None:
        if not isinstance(self.format, JinjaFormat) or not (name := self.chat.thinking_switch):
            return
        with suppress(ModelFormatError):
            told = {on: self.format.switched(name, on=on) for on in (True, False)}
            self._told = {on: form for on, form in told.items() if form.probed != self.format.probed}
            self.thinks = False in self._told

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Return what each id adds to an answer; the marks around thinking are part of what is said."""
        table = padded(self.tokenizer.token_bytes, self._vocab_size)
        for mark, token in self._control_marks.items():
            table[token] = mark.encode()
        return table

    def fit_prompt(
        self,
        dialog: Sequence[ChatMessage],
        max_prompt_tokens: int,
        *,
        answer_so_far: str = "",
        thinking: bool | None = None,
    ) -> Prompt:
        """See `TextEngine.fit_prompt`."""
        chat_format, reasoning = self.format, self.reasoning
        if thinking is not None and thinking in self._told:
            chat_format, reasoning = self._told[thinking], self.switched[thinking]
        answer_ids = self._answer_ids(answer_so_far, reasoning) if answer_so_far else ()
        return fit_prompt(chat_format, dialog, max_prompt_tokens, answer_ids)

    def is_safe(self, text: str) -> bool:
        """See `TextEngine.is_safe`."""
        return self.format is None or self.format.is_safe(text)

    def count_tokens(self, text: str) -> int:
        """See `TextEngine.count_tokens`."""
        return len(self.tokenizer.encode(text))

    def forget(self) -> None:
        """Forget texts, some of which were deleted."""
        self.tokenizer.forget()

    def output_ids(self, output: str, *, is_continued: bool) -> list[int]:
        """Return the ids of what a model has written so far, thinking included, to go on behind it.

        is_continued: it stands behind the beginning of an answer, and not at its start.
        """
        marks = self._control_marks
        if not marks:
            return self._run_ids(output, is_start=not is_continued)
        ids: list[int] = []
        for run in re.split("(" + "|".join(map(re.escape, marks)) + ")", output):
            if run in marks:
                ids.append(marks[run])
            elif run:
                ids += self._run_ids(run, is_start=not ids and not is_continued)
        return ids

    def _run_ids(self, text: str, *, is_start: bool) -> list[int]:
        if is_start:
            return self.tokenizer.encode(text)
        if not self.tokenizer.opening_space_ids:
            return self.tokenizer.encode_inside(text)
        head = self.tokenizer.encode(_BREAK)
        ids = self.tokenizer.encode(_BREAK + text)
        return ids[len(head) :] if ids[: len(head)] == head else self.tokenizer.encode_inside(text)

    def _answer_ids(self, answer: str, reasoning: Reasoning | None) -> Sequence[int]:
        """Return the ids of an answer to go on with, behind the thinking that the prompt begins."""
        if reasoning is None or not reasoning.is_open:
            return self.tokenizer.encode(answer)
        closing = reasoning.closing
        if closing in self._control_marks:
            return [self._control_marks[closing], *self.tokenizer.encode_inside(f"\n\n{answer}")]
        return self.tokenizer.encode_inside(f"{closing}\n\n{answer}")

    @property
    def _control_marks(self) -> dict[str, int]:
        """Return the ids of those marks around thinking that are control tokens."""
        marks = () if self.reasoning is None else (self.reasoning.opening, self.reasoning.closing)
        special = self.tokenizer.special_ids
        return {mark: special[mark] for mark in marks if mark in special}
