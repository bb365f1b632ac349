"""`/help`."""

from __future__ import annotations

from typing import Any

from discord import app_commands

from bot.conversation.service import ChatService
from bot.language.phrases import phrase, together
from bot.on_discord.interactions import Interaction, say


def conversation_commands(chat: ChatService) -> list[app_commands.Command[Any, ..., None]]:
    """Return `/help`."""

    @app_commands.command(name="help", description="What I can do")
    async def help_(interaction: Interaction) -> None:
        info = chat.engine.info
        text = phrase("help", model=info.name)
        await say(interaction, text if info.chat_format else together(phrase("errors.no_chat_format"), text))

    return [help_]
