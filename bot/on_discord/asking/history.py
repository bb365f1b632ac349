"""`/history`: what is remembered of a conversation, as pages with buttons, or as a file.

Shown to one person alone, with a line where the model's view begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import discord
from discord import app_commands

from bot.conversation.dialog import spoken
from bot.conversation.mentions import label
from bot.conversation.prompting import last_view, place_of
from bot.conversation.service import ChatService
from bot.delivery.render import defuse
from bot.language.phrases import phrase, render
from bot.on_discord.buttons import Press, button, view_of
from bot.on_discord.interactions import reporting, say, show_instead, text_file
from bot.on_discord.origins import Interaction, conversation_of
from storage.conversations import Message, Role

MAX_MESSAGES = 400
MAX_PAGE_CHARS = 900
"""Escaping may double it."""
MAX_ENTRY_CHARS = 350
_NEWEST = 10_000
_FILE = "file"


class History:
    """Carries out `/history`, and the buttons below a page."""

    def __init__(self, chat: ChatService) -> None:
        self._chat = chat

    def command(self) -> app_commands.Command[Any, ..., None]:
        """Return `/history`."""

        @app_commands.command(name="history", description="What I remember of this conversation")
        @app_commands.describe(file="All of it as a text file")
        async def history(interaction: Interaction, file: bool = False) -> None:
            async with reporting(interaction):
                if file:
                    await self._send_file(interaction)
                else:
                    text, view = await self._page(interaction, _NEWEST)
                    await say(interaction, text, view=view)

        return history

    async def press(self, interaction: Interaction, argument: str) -> None:
        """Show what a button asks for, of the channel that it is pressed in and no other."""
        async with reporting(interaction):
            page = argument.rpartition(":")[2]
            if page == _FILE:
                await self._send_file(interaction)
                return
            text, view = await self._page(interaction, int(page))
            await show_instead(interaction, text, view=view)

    async def _send_file(self, interaction: Interaction) -> None:
        """Answer with everything as a text file."""
        messages = await self._chat.transcript(conversation_of(interaction), MAX_MESSAGES)
        text = export(messages, _bot_name(interaction), _view_line(interaction))
        if not text:
            await say(interaction, phrase("errors.nothing_said"))
            return
        await say(interaction, file=text_file("conversation.txt", text))

    async def _page(self, interaction: Interaction, number: int) -> tuple[str, discord.ui.View | None]:
        """Return a page with its buttons; a number that is too high is the newest one."""
        locale = interaction.locale
        messages = await self._chat.transcript(conversation_of(interaction), MAX_MESSAGES)
        all_pages = pages(messages, _bot_name(interaction), _view_line(interaction))
        if not all_pages:
            return render(phrase("errors.nothing_said"), locale), None
        number = min(number, len(all_pages) - 1)
        head = render(phrase("history.page", page=number + 1, pages=len(all_pages)), locale)
        targets = [("history.older", number - 1), ("history.newer", number + 1)]
        shown = [(key, target) for key, target in targets if 0 <= target < len(all_pages)]
        view = view_of(
            *(
                button(Press.HISTORY, f"{interaction.channel_id or 0}:{target}", render(phrase(key), locale))
                for key, target in (*shown, ("history.file", _FILE))
            )
        )
        quoted = discord.utils.escape_markdown(all_pages[number])[:1850]
        return f"{head}\n{defuse(quoted)}", view


def _bot_name(interaction: Interaction) -> str:
    user = interaction.client.user
    return label("" if user is None else user.display_name)


def _view_line(interaction: Interaction) -> str:
    return render(phrase("history.view_begins"), interaction.locale)


def pages(messages: Sequence[Message], bot_name: str, view_line: str) -> list[str]:
    """Return the pages, the newest one last, each fit for one Discord message.

    `view_line` is put where the model's view begins.
    """
    filled: list[str] = []
    page = ""
    for entry in _with_view([_entry(message, bot_name) for message in messages], messages, f"{view_line}\n"):
        if page and len(page) + len(entry) + 1 > MAX_PAGE_CHARS:
            filled.append(page)
            page = ""
        page = f"{page}\n{entry}" if page else entry
    return [*filled, page] if page else filled


def export(messages: Sequence[Message], bot_name: str, view_line: str) -> str:
    """Return all of it as a text, with `view_line` where the model's view begins."""
    told = [message for message in messages if message.content]
    entries = [
        f"[{message.created_at:%Y-%m-%d %H:%M} UTC] {_name(message, bot_name)}:\n{spoken(message)}"
        for message in told
    ]
    return "\n\n".join(_with_view(entries, told, f"{view_line}\n\n"))


def _with_view(entries: list[str], messages: Sequence[Message], view_line: str) -> list[str]:
    """Put a line above the first message that the model saw for the newest answer, if it did not see all."""
    view_from = last_view(messages)
    num_unseen = sum(place_of(message) < view_from for message in messages)
    if num_unseen:
        entries[num_unseen] = f"{view_line}{entries[num_unseen]}"
    return entries


def _entry(message: Message, bot_name: str) -> str:
    """Return a message on one line, cut short."""
    text = " ".join(message.content.replace("`", "'").split()) or "…"
    cut = text if len(text) <= MAX_ENTRY_CHARS else f"{text[:MAX_ENTRY_CHARS]}…"
    return f"{_name(message, bot_name)}: {cut}"


def _name(message: Message, bot_name: str) -> str:
    return message.author_name if message.role is Role.USER else bot_name
