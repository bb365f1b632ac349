"""From stored history to a dialog, and from that to a prompt that the engine accepts.

Owns what is left out when a history cannot be used as it is, so that one odd message never ends a
conversation for good. Pure computation of milliseconds: call it in a thread. Knows nothing of storage's
database and of Discord.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from bot.conversation.mentions import label
from engine.errors import PromptTooLongError, UnsafePromptError
from engine.types import ChatMessage, Prompt, TextEngine
from storage.conversations import Message, Quote, Role

MAX_MESSAGES = 200
"""The newest ones, which are looked at at all."""
YOU = "you"
"""Whom a quote without a name is from: the model itself."""
MAX_STOP_NAMES = 16
"""The most recent speakers whose names end an answer; a bound, for each one is looked for at every step."""


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt, the texts that must end its answer, and how much of the history it shows.

    view_from: the id of the stored message that it begins with. num_left_out: messages before that one.
    """

    prompt: Prompt
    stop: tuple[str, ...]
    view_from: int
    num_left_out: int


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


def check_question(engine: TextEngine, text: str, system_prompt: str, max_tokens: int) -> None:
    """Raise the `PromptError` that `text` would cause as the first question of a conversation."""
    system = (ChatMessage("system", system_prompt),) if system_prompt.strip() else ()
    engine.fit_prompt((*system, ChatMessage("user", text)), max_tokens)


def _fit_or_last(
    engine: TextEngine, history: Sequence[Message], system_prompt: str, max_tokens: int, begun: str
) -> tuple[Dialog, Prompt]:
    try:
        return _fit(engine, build_dialog(history, system_prompt), max_tokens, begun)
    except PromptTooLongError:
        return _fit(engine, build_dialog(history[-1:], system_prompt), max_tokens, begun)


def _fit(engine: TextEngine, dialog: Dialog, max_tokens: int, begun: str) -> tuple[Dialog, Prompt]:
    return dialog, engine.fit_prompt(dialog.messages, max_tokens, answer_so_far=begun)


@dataclass(frozen=True, slots=True)
class Dialog:
    """An optional system message, then user and assistant in turn, ending with the user.

    `stop` holds what must not come out of the model: the beginnings of other people's turns. `first_ids` are
    those of the stored messages that the turns begin with.
    """

    messages: tuple[ChatMessage, ...]
    stop: tuple[str, ...] = ()
    first_ids: tuple[int, ...] = ()


def build_dialog(history: Sequence[Message], system_prompt: str) -> Dialog:
    """Return the dialog for `history`, oldest first.

    Messages in a row of the same side become one turn; answers before the first question are left out. As
    soon as two people speak, each of their messages begins with its author's name.
    """
    spoken = _from_first_question(history)
    names = _names(spoken)
    sides = [list(messages) for _role, messages in groupby(spoken, key=lambda message: message.role)]
    turns = [
        ChatMessage(
            "user" if messages[0].role is Role.USER else "assistant",
            "\n".join(_text(message, names) for message in messages),
        )
        for messages in sides
    ]
    system = (ChatMessage("system", system_prompt),) if system_prompt.strip() else ()
    first_ids = tuple(messages[0].id for messages in sides)
    return Dialog((*system, *turns), _stops(spoken, names), first_ids)


def with_quote(content: str, quote: Quote | None) -> str:
    """Return a question with what it refers to before it, quoted as people quote in mails."""
    if quote is None:
        return content
    quoted = "\n".join(f"> {line}" for line in quote.content.splitlines())
    return f"About what {quote.author_name or YOU} wrote:\n{quoted}\n\n{content}"


def spoken(message: Message) -> str:
    """Return all that a message says."""
    return with_quote(message.content, message.quote)


def _from_first_question(history: Sequence[Message]) -> Sequence[Message]:
    for index, message in enumerate(history):
        if message.role is Role.USER:
            return history[index:]
    return ()


def _names(spoken: Sequence[Message]) -> dict[int | None, str]:
    """Return each author's name, or nothing while there is only one author. Namesakes get a number."""
    latest = {m.author_id: label(m.author_name) for m in spoken if m.role is Role.USER}
    if len(latest) < 2:
        return {}
    names: dict[int | None, str] = {}
    for author_id, name in latest.items():
        taken, number, unique = set(names.values()), 2, name
        while unique in taken:
            unique, number = f"{name} ({number})", number + 1
        names[author_id] = unique
    return names


def _text(message: Message, names: dict[int | None, str]) -> str:
    if message.role is Role.USER and message.author_id in names:
        return f"{names[message.author_id]}: {spoken(message)}"
    return spoken(message)


def _stops(spoken: Sequence[Message], names: dict[int | None, str]) -> tuple[str, ...]:
    recent = dict.fromkeys(names[m.author_id] for m in reversed(spoken) if m.role is Role.USER and names)
    return tuple(f"\n{name}:" for name in list(recent)[:MAX_STOP_NAMES])
