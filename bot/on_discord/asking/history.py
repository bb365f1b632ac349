"""`/history`: what is remembered of a conversation, as pages with buttons, or as a file.

Shown to one person alone. Knows nothing of how pages are filled.
"""

from __future__ import annotations

from typing import Any

import discord
from discord import app_commands

from bot.conversation.mentions import label
from bot.conversation.service import ChatService
from bot.conversation.transcript import export, pages
from bot.delivery.effects import defuse
from bot.language.phrases import phrase, render
from bot.on_discord.buttons import Press, button, view_of
from bot.on_discord.interactions import reporting, say, show_instead, text_file
from bot.on_discord.origins import Interaction, conversation_of

MAX_MESSAGES = 400
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
