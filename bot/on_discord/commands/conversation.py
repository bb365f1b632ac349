"""`/reset` and `/help`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from discord import app_commands

from bot.conversation.service import ChatService
from bot.language.phrases import phrase
from bot.on_discord.commands.checks import check_moderator
from bot.on_discord.interactions import Interaction, acknowledge, conversation_of, reporting, say


def conversation_commands(chat: ChatService) -> list[app_commands.Command[Any, ..., None]]:
    """Return `/reset` and `/help`."""

    @app_commands.command(name="reset", description="Forget this conversation (moderators)")
    @app_commands.default_permissions(manage_messages=True)
    async def reset(interaction: Interaction) -> None:
        async with reporting(interaction):
            check_moderator(interaction)
            await acknowledge(interaction)
            num_messages = await chat.reset(
                conversation_of(interaction), by_user_id=interaction.user.id, at=datetime.now(UTC)
            )
            await say(interaction, phrase("reset.done", num=num_messages))

    @app_commands.command(name="help", description="What I can do")
    async def help_(interaction: Interaction) -> None:
        await say(interaction, phrase("help", model=chat.engine.info.name))

    return [reset, help_]
