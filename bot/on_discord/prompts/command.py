"""`/system`: the text that tells the model how to behave in this conversation."""

from __future__ import annotations

import discord
from discord import app_commands

from bot.conversation.system_prompts import SystemPrompt, SystemPrompts
from bot.language.phrases import phrase
from bot.on_discord.interactions import (
    Interaction,
    acknowledge,
    check_moderator,
    conversation_of,
    reporting,
    say,
)
from bot.on_discord.prompts.drafts import Scope
from bot.on_discord.prompts.editor import PromptEditor
from bot.parameters import MAX_SYSTEM_PROMPT_CHARS
from engine.text.guidance import PRESETS

_PRESETS = [app_commands.Choice(name=name, value=name) for name in PRESETS]
_MAX_SHOWN = 1850
"""Characters of a system prompt, so that they fit in one message."""


class SystemCommands(app_commands.Group):
    """`/system`: the text that tells the model how to behave in this conversation."""

    def __init__(self, prompts: SystemPrompts, editor: PromptEditor) -> None:
        super().__init__(name="system", description="The system prompt of this conversation")
        self._prompts = prompts
        self._editor = editor

    @app_commands.command(name="show", description="Show the system prompt of this conversation")
    async def show(self, interaction: Interaction) -> None:
        """Show the prompt in force and where it comes from."""
        async with reporting(interaction):
            await acknowledge(interaction)
            prompt = await self._prompts.read(conversation_of(interaction))
            await say(interaction, *_shown(prompt))

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
            cost = await self._prompts.set(ref, text, by_user_id=interaction.user.id)
            await say(interaction, phrase("system.changed", num=cost.num_tokens))

    @app_commands.command(name="edit", description="Edit the system prompt in a form (moderators)")
    async def edit(self, interaction: Interaction) -> None:
        """Show the form, with what holds now."""
        async with reporting(interaction):
            await self._editor.open(interaction, Scope.CONVERSATION)

    @app_commands.command(name="preset", description="Use a system prompt with a name here (moderators)")
    @app_commands.describe(name="safe: Meta's safety guidance; none: no text")
    @app_commands.choices(name=_PRESETS)
    async def preset(self, interaction: Interaction, name: str) -> None:
        """Change the prompt to a preset."""
        async with reporting(interaction):
            check_moderator(interaction)
            await acknowledge(interaction)
            ref = conversation_of(interaction)
            cost = await self._prompts.set_preset(ref, name, by_user_id=interaction.user.id)
            await say(interaction, phrase("system.preset_holds", name=name, num=cost.num_tokens))

    @app_commands.command(name="clear", description="Go back to the default system prompt (moderators)")
    async def clear(self, interaction: Interaction) -> None:
        """Go back to the default."""
        async with reporting(interaction):
            check_moderator(interaction)
            await acknowledge(interaction)
            ref = conversation_of(interaction)
            was_own = await self._prompts.clear(ref, by_user_id=interaction.user.id)
            await say(interaction, phrase("system.cleared") if was_own else phrase("system.was_default"))


def _shown(prompt: SystemPrompt) -> tuple[str, str]:
    """Return what `/system show` says: where the prompt comes from, and the text that can be changed here."""
    text = prompt.text if prompt.own is None else prompt.own
    quoted = discord.utils.escape_markdown(text) if text.strip() else phrase("system.none")
    cut = quoted if len(quoted) <= _MAX_SHOWN else f"{quoted[:_MAX_SHOWN]}…"
    if prompt.is_guided:
        return phrase("system.shown_guided", origin=prompt.origin), cut
    return phrase("system.shown", origin=prompt.origin), cut
