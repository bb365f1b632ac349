"""`/history`: what I remember of this conversation, in pages or as a file. For everybody who is there."""

from __future__ import annotations

from typing import Any

from discord import app_commands

from bot.conversation.service import ChatService
from bot.on_discord.history_pages import send_file, show_newest
from bot.on_discord.interactions import Interaction, reporting


def history_commands(chat: ChatService) -> list[app_commands.Command[Any, ..., None]]:
    """Return `/history`."""

    @app_commands.command(name="history", description="What I remember of this conversation")
    @app_commands.describe(file="All of it as a text file")
    async def history(interaction: Interaction, file: bool = False) -> None:
        async with reporting(interaction):
            await (send_file if file else show_newest)(interaction, chat)

    return [history]
