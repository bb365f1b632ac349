"""A scripted engine that also makes real prompts, in every chat format, and looks at their control tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.errors import UnsafePromptError
from engine.text.prompt import ChatFormat, ChatMLFormat, Llama2Format, fit_prompt
from engine.types import ChatMessage, Prompt
from tests.engine.fakes import tiny_bpe
from tests.engine.family_formats import family_formats
from tests.engine.tiny_sentencepiece import tiny_sentencepiece
from tests.fakes import ScriptedEngine

BOS, EOS, START, END = 1, 2, 1, 2
_LONG = 10**9


@dataclass
class RedEngine(ScriptedEngine):
    """Refuses what the real formats refuse; `problems` lists control tokens that came from text."""

    llama: ChatFormat = field(default_factory=lambda: Llama2Format(tiny_sentencepiece(), BOS, EOS))
    chatml: ChatFormat = field(default_factory=lambda: ChatMLFormat(tiny_bpe(), {END}))
    problems: list[str] = field(default_factory=list)

    def fit_prompt(
        self,
        dialog: Sequence[ChatMessage],
        max_prompt_tokens: int,
        *,
        answer_so_far: str = "",
        thinking: bool | None = None,
    ) -> Prompt:
        """Make the prompt in each format, count its control tokens, then do as scripted."""
        turns = [message for message in dialog if message.role != "system"]
        num_answers = sum(message.role == "assistant" for message in turns)
        ids = fit_prompt(self.llama, dialog, _LONG).ids
        if (ids.count(BOS), ids.count(EOS)) != (num_answers + 1, num_answers):
            self.problems.append(f"llama-2: {ids.count(BOS)} beginnings, {ids.count(EOS)} ends")
        ids = fit_prompt(self.chatml, dialog, _LONG).ids
        if (ids.count(START), ids.count(END)) != (len(dialog) + 1, len(dialog)):
            self.problems.append(f"chatml: {ids.count(START)} starts, {ids.count(END)} ends")
        self._look_at_families(dialog)
        return super().fit_prompt(dialog, max_prompt_tokens, answer_so_far=answer_so_far, thinking=thinking)

    def _look_at_families(self, dialog: Sequence[ChatMessage]) -> None:
        """Compare the control tokens of each family's prompt with those for messages that say nothing."""
        harmless = [replace(message, content="x") for message in dialog]
        for kind, (tokenizer, chat_format) in family_formats().items():
            control = set(tokenizer.special_ids.values())
            try:
                ids = fit_prompt(chat_format, dialog, _LONG).ids
            except UnsafePromptError:
                continue  # the real engine refuses it too
            expected = fit_prompt(chat_format, harmless, _LONG).ids
            if [one for one in ids if one in control] != [one for one in expected if one in control]:
                self.problems.append(f"{kind}: other control tokens than the template's")
