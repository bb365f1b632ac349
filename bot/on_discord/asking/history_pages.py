"""The pages of `/history` and their buttons, which carry the channel and the page and so outlive a restart.

Shown to one person alone. Knows nothing of how pages are filled.
"""

from __future__ import annotations

import io
import re
from typing import Any, Self

import discord
from discord import app_commands

from bot.conversation.mentions import label
from bot.conversation.service import ChatService
from bot.conversation.transcript import export, pages
from bot.delivery.markup import defuse
from bot.language.phrases import phrase, render
from bot.on_discord.interactions import Interaction, conversation_of, reporting, say, show_instead

MAX_MESSAGES = 400
_NEWEST = 10_000


class HistoryButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"llamacord:history:(?P<channel_id>[0-9]{1,20}):(?P<page>[0-9]{1,5}|file)",
):
    """Turns to another page, or gives all of it as a file."""

    def __init__(self, channel_id: int, page: str, text: str = "…") -> None:
        self.channel_id = channel_id
        self.page = page
        super().__init__(
            discord.ui.Button(
                label=text,
                style=discord.ButtonStyle.secondary,
                custom_id=f"llamacord:history:{channel_id}:{page}",
            )
        )

    @classmethod
    async def from_custom_id(
        cls,
        interaction: Interaction,  # noqa: ARG003 - discord.py's signature
        item: discord.ui.Item[discord.ui.View],  # noqa: ARG003
        match: re.Match[str],
    ) -> Self:
        """Make the button that was pressed."""
        return cls(int(match["channel_id"]), match["page"])

    async def callback(self, interaction: Interaction) -> None:
        """Show what is asked for, of the channel that it is pressed in and no other."""
        chat: ChatService = interaction.client.chat  # type: ignore[attr-defined]
        async with reporting(interaction):
            if self.page == "file":
                await send_file(interaction, chat)
                return
            text, view = await page_of(interaction, chat, int(self.page))
            await show_instead(interaction, text, view=view)


async def show_newest(interaction: Interaction, chat: ChatService) -> None:
    """Answer a command with the newest page."""
    text, view = await page_of(interaction, chat, _NEWEST)
    await say(interaction, text, view=view)


async def send_file(interaction: Interaction, chat: ChatService) -> None:
    """Answer with everything as a text file."""
    messages = await chat.transcript(conversation_of(interaction), MAX_MESSAGES)
    text = export(messages, _bot_name(interaction), _view_line(interaction))
    if not text:
        await say(interaction, phrase("errors.nothing_said"))
        return
    file = discord.File(io.BytesIO(text.encode("utf-8", "replace")), filename="conversation.txt")
    await say(interaction, file=file)


async def page_of(
    interaction: Interaction, chat: ChatService, number: int
) -> tuple[str, discord.ui.View | None]:
    """Return a page with its buttons; a number that is too high is the newest one."""
    locale = interaction.locale
    messages = await chat.transcript(conversation_of(interaction), MAX_MESSAGES)
    all_pages = pages(messages, _bot_name(interaction), _view_line(interaction))
    if not all_pages:
        return render(phrase("errors.nothing_said"), locale), None
    number = min(number, len(all_pages) - 1)
    head = render(phrase("history.page", page=number + 1, pages=len(all_pages)), locale)
    view = discord.ui.View(timeout=None)
    channel_id = interaction.channel_id or 0
    targets = [("history.older", number - 1), ("history.newer", number + 1)]
    for key, target in targets:
        if 0 <= target < len(all_pages):
            view.add_item(HistoryButton(channel_id, str(target), render(phrase(key), locale)))
    view.add_item(HistoryButton(channel_id, "file", render(phrase("history.file"), locale)))
    quoted = discord.utils.escape_markdown(all_pages[number])[:1850]
    return f"{head}\n{defuse(quoted)}", view


def _bot_name(interaction: Interaction) -> str:
    user = interaction.client.user
    return label("" if user is None else user.display_name)


def _view_line(interaction: Interaction) -> str:
    return render(phrase("history.view_begins"), interaction.locale)


def history_commands(chat: ChatService) -> list[app_commands.Command[Any, ..., None]]:
    """Return `/history`."""

    @app_commands.command(name="history", description="What I remember of this conversation")
    @app_commands.describe(file="All of it as a text file")
    async def history(interaction: Interaction, file: bool = False) -> None:
        async with reporting(interaction):
            await (send_file if file else show_newest)(interaction, chat)

    return [history]
