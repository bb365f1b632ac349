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


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt, and the texts that must end its answer."""

    prompt: Prompt
    stop: tuple[str, ...]


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
    try:
        return _fit_or_last(engine, history, system_prompt, max_tokens, begun)
    except UnsafePromptError:
        safe = [*(m for m in history[:-1] if _is_safe(engine, spoken(m))), *history[-1:]]
        return _fit_or_last(engine, safe, system_prompt, max_tokens, begun)


def _fit_or_last(
    engine: TextEngine, history: Sequence[Message], system_prompt: str, max_tokens: int, begun: str
) -> FittedPrompt:
    try:
        return _fit(engine, build_dialog(history, system_prompt), max_tokens, begun)
    except PromptTooLongError:
        return _fit(engine, build_dialog(history[-1:], system_prompt), max_tokens, begun)


def _fit(engine: TextEngine, dialog: Dialog, max_tokens: int, begun: str) -> FittedPrompt:
    prompt = engine.fit_prompt(dialog.messages, max_tokens, answer_so_far=begun)
    return FittedPrompt(prompt, dialog.stop)


def _is_safe(engine: TextEngine, text: str) -> bool:
    try:
        check_question(engine, text, "", engine.info.context_length)
    except UnsafePromptError:
        return False
    except PromptTooLongError:
        return True
    return True
