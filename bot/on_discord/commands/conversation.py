"""`/help`."""

from __future__ import annotations

from typing import Any

from discord import app_commands

from bot.conversation.service import ChatService
from bot.language.phrases import phrase
from bot.on_discord.interactions import Interaction, say


def conversation_commands(chat: ChatService) -> list[app_commands.Command[Any, ..., None]]:
    """Return `/help`."""

    @app_commands.command(name="help", description="What I can do")
    async def help_(interaction: Interaction) -> None:
        await say(interaction, phrase("help", model=chat.engine.info.name))

    return [help_]
