"""From stored history to a prompt that the engine accepts.

Owns what is left out when a history cannot be used as it is, so that one odd message never ends a
conversation for good. Pure computation of milliseconds: call it in a thread. Knows nothing of storage's
database and of Discord.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bot.conversation.dialog import Dialog, build_dialog, spoken
from engine.errors import PromptTooLongError, UnsafePromptError
from engine.types import ChatMessage, Prompt, TextEngine
from storage.conversations import Message

MAX_MESSAGES = 200
"""The newest ones, which are looked at at all."""


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt, the texts that must end its answer, and how much of the history it shows.

    view_from: the id of the stored message that it begins with. num_left_out: messages before that one.
    """

    prompt: Prompt
    stop: tuple[str, ...]
    view_from: int
    num_left_out: int


def check_question(engine: TextEngine, text: str, system_prompt: str, max_tokens: int) -> None:
    """Raise the `PromptError` that `text` would cause as the first question of a conversation."""
    system = (ChatMessage("system", system_prompt),) if system_prompt.strip() else ()
    engine.fit_prompt((*system, ChatMessage("user", text)), max_tokens)


def fit_history(
    engine: TextEngine, history: Sequence[Message], system_prompt: str, max_tokens: int, begun: str = ""
) -> FittedPrompt:
    """Return the prompt for the last message of `history`, whose answer begins with `begun`.

    Unsafe messages of the past (an answer may quote control tags) are left out. Where questions without an
    answer have piled up into one turn that is too long, only the last message is asked. Raises `PromptError`
    where the last message itself is at fault.
    """
    newest = history[-MAX_MESSAGES:]
    try:
        dialog, prompt = _fit_or_last(engine, newest, system_prompt, max_tokens, begun)
    except UnsafePromptError:
        safe = [*(m for m in newest[:-1] if engine.is_safe(spoken(m))), *newest[-1:]]
        dialog, prompt = _fit_or_last(engine, safe, system_prompt, max_tokens, begun)
    view_from = dialog.first_ids[prompt.num_dropped]
    num_left_out = next(at for at, message in enumerate(history) if message.id == view_from)
    return FittedPrompt(prompt, dialog.stop, view_from, num_left_out)


def _fit_or_last(
    engine: TextEngine, history: Sequence[Message], system_prompt: str, max_tokens: int, begun: str
) -> tuple[Dialog, Prompt]:
    try:
        return _fit(engine, build_dialog(history, system_prompt), max_tokens, begun)
    except PromptTooLongError:
        return _fit(engine, build_dialog(history[-1:], system_prompt), max_tokens, begun)


def _fit(engine: TextEngine, dialog: Dialog, max_tokens: int, begun: str) -> tuple[Dialog, Prompt]:
    return dialog, engine.fit_prompt(dialog.messages, max_tokens, answer_so_far=begun)
