"""What was said in a conversation, as pages to read and as a file to keep. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bot.conversation.dialog import spoken
from storage.conversations import Message, Role

MAX_PAGE_CHARS = 900
"""Escaping may double it."""
MAX_ENTRY_CHARS = 350


def pages(messages: Sequence[Message], bot_name: str) -> list[str]:
    """Return the pages, the newest one last, each fit for one Discord message."""
    filled: list[str] = []
    page = ""
    for entry in (_entry(message, bot_name) for message in messages):
        if page and len(page) + len(entry) + 1 > MAX_PAGE_CHARS:
            filled.append(page)
            page = ""
        page = f"{page}\n{entry}" if page else entry
    return [*filled, page] if page else filled


def export(messages: Sequence[Message], bot_name: str) -> str:
    """Return all of it as a text."""
    return "\n\n".join(
        f"[{message.created_at:%Y-%m-%d %H:%M} UTC] {_name(message, bot_name)}:\n{spoken(message)}"
        for message in messages
        if message.content
    )


def _entry(message: Message, bot_name: str) -> str:
    """Return a message on one line, cut short."""
    text = " ".join(message.content.replace("`", "'").split()) or "…"
    cut = text if len(text) <= MAX_ENTRY_CHARS else f"{text[:MAX_ENTRY_CHARS]}…"
    return f"{_name(message, bot_name)}: {cut}"


def _name(message: Message, bot_name: str) -> str:
    return message.author_name if message.role is Role.USER else bot_name
