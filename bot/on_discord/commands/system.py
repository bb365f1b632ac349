"""`/system`: the text that tells the model how to behave in this conversation."""

from __future__ import annotations

import discord
from discord import app_commands

from bot.conversation.preferences import MAX_SYSTEM_PROMPT_CHARS, Preferences
from bot.language.phrases import phrase
from bot.on_discord.commands.checks import check_moderator
from bot.on_discord.interactions import Interaction, acknowledge, conversation_of, reporting, say

_MAX_SHOWN = 1900
"""Characters of a system prompt, so that they fit in one message."""


class SystemCommands(app_commands.Group):
    """`/system`: the text that tells the model how to behave in this conversation."""

    def __init__(self, preferences: Preferences) -> None:
        super().__init__(name="system", description="The system prompt of this conversation")
        self._preferences = preferences

    @app_commands.command(name="show", description="Show the system prompt of this conversation")
    async def show(self, interaction: Interaction) -> None:
        """Show the prompt in force and where it comes from."""
        async with reporting(interaction):
            await acknowledge(interaction)
            prompt, is_own = await self._preferences.system_prompt(conversation_of(interaction))
            quoted = discord.utils.escape_markdown(prompt) if prompt.strip() else phrase("system.none")
            shown = quoted if len(quoted) <= _MAX_SHOWN else f"{quoted[:_MAX_SHOWN]}…"
            await say(interaction, phrase("system.own") if is_own else phrase("system.default"), shown)

    @app_commands.command(name="set", description="Change the system prompt here (moderators)")
    @app_commands.describe(text="What the model should be told before every conversation")
    async def set(
        self, interaction: Interaction, text: app_commands.Range[str, 1, MAX_SYSTEM_PROMPT_CHARS]
    ) -> None:
        """Change the prompt."""
        async with reporting(interaction):
            check_moderator(interaction)
            await acknowledge(interaction)
            ref = conversation_of(interaction)
            num_tokens = await self._preferences.set_system_prompt(ref, text, by_user_id=interaction.user.id)
            await say(interaction, phrase("system.changed", num=num_tokens))

    @app_commands.command(name="clear", description="Go back to the default system prompt (moderators)")
    async def clear(self, interaction: Interaction) -> None:
        """Go back to the default."""
        async with reporting(interaction):
            check_moderator(interaction)
            await acknowledge(interaction)
            was_own = await self._preferences.clear_system_prompt(conversation_of(interaction))
            await say(interaction, phrase("system.cleared") if was_own else phrase("system.was_default"))
