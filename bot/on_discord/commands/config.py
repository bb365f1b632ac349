"""`/config`: the settings of a server, in one panel."""

from __future__ import annotations

from typing import Any

from discord import app_commands

from bot.on_discord.config_controls import ConfigPanel
from bot.on_discord.interactions import Interaction


def config_command(panel: ConfigPanel) -> app_commands.Command[Any, ..., None]:
    """Return `/config`."""

    @app_commands.command(name="config", description="The settings of this server (Manage Server)")
    @app_commands.default_permissions(manage_guild=True)
    @app_commands.guild_only()
    async def config(interaction: Interaction) -> None:
        await panel.show(interaction)

    return config
