"""Stored history to the dialog that the model sees. Pure.

Knows nothing of tokens: what does not fit is dropped by the engine, oldest turns first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from bot.conversation.mentions import label
from engine.types import SAID_BEFORE, ChatMessage
from storage.conversations import Message, Quote, Role

YOU = "you"
"""Whom a quote without a name is from: the model itself."""
MAX_STOP_NAMES = 16
"""The most recent speakers whose names end an answer; a bound, for each one is looked for at every step."""


@dataclass(frozen=True, slots=True)
class Dialog:
    """An optional system message, then user and assistant in turn, ending with the user.

    `stop` holds what must not come out of the model: the beginnings of other people's turns. `first_ids` are
    those of the stored messages that the turns begin with.
    """

    messages: tuple[ChatMessage, ...]
    stop: tuple[str, ...] = ()
    first_ids: tuple[int, ...] = ()


def build_dialog(history: Sequence[Message], system_prompt: str, summed_up: str = "") -> Dialog:
    """Return the dialog for `history`, oldest first.

    Messages in a row of the same side become one turn; answers before the first question are left out. As
    soon as two people speak, each of their messages begins with its author's name. `summed_up`: what was said
    before, which stands before the first question and has no more weight than people's own words.
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
    if summed_up and turns:
        turns[0] = ChatMessage("user", f"{summed_up}\n\n{turns[0].content}")
    system = (ChatMessage("system", system_prompt),) if system_prompt.strip() else ()
    first_ids = tuple(messages[0].id for messages in sides)
    return Dialog((*system, *turns), _stops(spoken, names), first_ids)


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


def with_quote(content: str, quote: Quote | None) -> str:
    """Return a question with what it refers to before it, quoted as people quote in mails."""
    if quote is None:
        return content
    quoted = "\n".join(f"> {line}" for line in quote.content.splitlines())
    return f"About what {quote.author_name or YOU} wrote:\n{quoted}\n\n{content}"


def with_frame(summaries: Sequence[str]) -> str:
    """Return what the model is told of what was said before, quoted as questions quote."""
    lines = [f"> {line}" for summary in summaries for line in summary.splitlines() if line.strip()]
    return "\n".join((SAID_BEFORE, *lines)) if lines else ""


def spoken(message: Message) -> str:
    """Return all that a message says."""
    return with_quote(message.content, message.quote)


def _text(message: Message, names: dict[int | None, str]) -> str:
    if message.role is Role.USER and message.author_id in names:
        return f"{names[message.author_id]}: {spoken(message)}"
    return spoken(message)


def _stops(spoken: Sequence[Message], names: dict[int | None, str]) -> tuple[str, ...]:
    recent = dict.fromkeys(names[m.author_id] for m in reversed(spoken) if m.role is Role.USER and names)
    return tuple(f"\n{name}:" for name in list(recent)[:MAX_STOP_NAMES])
