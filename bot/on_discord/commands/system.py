"""`/system`: the text that tells the model how to behave in this conversation."""

from __future__ import annotations

import discord
from discord import app_commands

from bot.conversation.preferences import MAX_SYSTEM_PROMPT_CHARS, Preferences, SystemPrompt
from bot.errors import is_expected, sentence_for
from bot.language.phrases import phrase, render
from bot.on_discord.commands.checks import check_moderator
from bot.on_discord.interactions import (
    Interaction,
    acknowledge,
    acknowledge_with,
    conversation_of,
    reporting,
    say,
    show_form,
)
from engine.guidance import PRESETS

_PRESETS = [app_commands.Choice(name=name, value=name) for name in PRESETS]
_MAX_SHOWN = 1850
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
            prompt = await self._preferences.system_prompt(conversation_of(interaction))
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
            num_tokens = await self._preferences.set_system_prompt(ref, text, by_user_id=interaction.user.id)
            await say(interaction, phrase("system.changed", num=num_tokens))

    @app_commands.command(name="edit", description="Edit the system prompt in a form (moderators)")
    async def edit(self, interaction: Interaction) -> None:
        """Show the form, with what holds now."""
        async with reporting(interaction):
            check_moderator(interaction)
            ref = conversation_of(interaction)
            prompt = await self._preferences.system_prompt(ref)
            num_tokens, allowed = await self._preferences.system_prompt_cost(ref)
            cost = render(phrase("system.form_cost", tokens=num_tokens, allowed=allowed), interaction.locale)
            text = prompt.text if prompt.own is None and not prompt.is_guided else prompt.own or ""
            title = render(phrase("system.form_title"), interaction.locale)
            await show_form(interaction, SystemForm(self._preferences, title, cost, text))

    @app_commands.command(name="preset", description="Use a system prompt with a name here (moderators)")
    @app_commands.describe(name="safe: Meta's safety guidance; none: no text")
    @app_commands.choices(name=_PRESETS)
    async def preset(self, interaction: Interaction, name: str) -> None:
        """Change the prompt to a preset."""
        async with reporting(interaction):
            check_moderator(interaction)
            await acknowledge(interaction)
            ref = conversation_of(interaction)
            num_tokens = await self._preferences.set_preset(ref, name, by_user_id=interaction.user.id)
            await say(interaction, phrase("system.preset_holds", name=name, num=num_tokens))

    @app_commands.command(name="clear", description="Go back to the default system prompt (moderators)")
    async def clear(self, interaction: Interaction) -> None:
        """Go back to the default."""
        async with reporting(interaction):
            check_moderator(interaction)
            await acknowledge(interaction)
            was_own = await self._preferences.clear_system_prompt(conversation_of(interaction))
            await say(interaction, phrase("system.cleared") if was_own else phrase("system.was_default"))


class SystemForm(discord.ui.Modal):
    """The system prompt to edit; Discord counts its characters while one types."""

    def __init__(self, preferences: Preferences, title: str, cost: str, text: str) -> None:
        super().__init__(title=title)
        self._preferences = preferences
        self._text: discord.ui.TextInput[SystemForm] = discord.ui.TextInput(
            label=cost[:45],
            default=text[:MAX_SYSTEM_PROMPT_CHARS],
            style=discord.TextStyle.paragraph,
            max_length=MAX_SYSTEM_PROMPT_CHARS,
        )
        self.add_item(self._text)

    async def on_submit(self, interaction: Interaction) -> None:
        """Set it, and say what it costs; what cannot be set is given back."""
        text = self._text.value
        async with reporting(interaction):
            check_moderator(interaction)
            await acknowledge_with(interaction, is_private=True)
            ref = conversation_of(interaction)
            try:
                await self._preferences.set_system_prompt(ref, text, by_user_id=interaction.user.id)
            except Exception as error:
                if not is_expected(error):
                    raise
                await say(interaction, sentence_for(error), discord.utils.escape_markdown(text)[:_MAX_SHOWN])
                return
            tokens, allowed = await self._preferences.system_prompt_cost(ref)
            num = len(text.strip())
            await say(interaction, phrase("system.edited", characters=num, tokens=tokens, allowed=allowed))


def _shown(prompt: SystemPrompt) -> tuple[str, str]:
    """Return what `/system show` says: where the prompt comes from, and the text that can be changed here."""
    text = prompt.text if prompt.own is None else prompt.own
    quoted = discord.utils.escape_markdown(text) if text.strip() else phrase("system.none")
    cut = quoted if len(quoted) <= _MAX_SHOWN else f"{quoted[:_MAX_SHOWN]}…"
    if prompt.is_guided:
        return phrase("system.shown_guided", origin=prompt.origin), cut
    return phrase("system.shown", origin=prompt.origin), cut
