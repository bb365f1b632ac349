"""`/free` and `/embeds`: where every message is answered, and how answers look on this server.

Knows nothing of how a message is found to be for us.
"""

from __future__ import annotations

from typing import Any

import discord
from discord import app_commands

from bot.errors import NotAllowedError
from bot.language.phrases import phrase
from bot.on_discord.interactions import Interaction, acknowledge, check_manager, reporting, say
from bot.servers.servers import Servers


def free_commands(servers: Servers, *, sees_all: bool) -> list[app_commands.Command[Any, ..., None]]:
    """Return the commands. `sees_all`: whether we get messages that do not mention us."""

    @app_commands.command(name="free", description="Answer every message in this channel (Manage Server)")
    @app_commands.describe(on="Whether I answer here without a mention")
    @app_commands.default_permissions(manage_guild=True)
    async def free(interaction: Interaction, on: bool) -> None:
        async with reporting(interaction):
            guild_id = check_manager(interaction)
            if on and not sees_all:
                raise NotAllowedError(phrase("free.no_intent"))
            await acknowledge(interaction)
            channel, channel_id = interaction.channel, interaction.channel_id or 0
            if isinstance(channel, discord.Thread):
                channel_id = channel.parent_id
            kept = (await servers.config(guild_id)).free_channels
            changed = kept | {channel_id} if on else kept - {channel_id}
            change = {"free_channels": sorted(changed)}
            await servers.change(guild_id, change, by_user_id=interaction.user.id)
            await say(interaction, phrase("free.on" if on else "free.off"))

    @app_commands.command(name="embeds", description="Show answers as embeds or as text (Manage Server)")
    @app_commands.describe(on="Whether answers are shown as embeds")
    @app_commands.default_permissions(manage_guild=True)
    async def embeds(interaction: Interaction, on: bool) -> None:
        async with reporting(interaction):
            guild_id = check_manager(interaction)
            await acknowledge(interaction)
            await servers.change(guild_id, {"uses_embeds": on}, by_user_id=interaction.user.id)
            await say(interaction, phrase("free.embeds" if on else "free.text"))

    return [free, embeds]
