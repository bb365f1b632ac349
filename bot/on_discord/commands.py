"""The slash commands: who may use them, what they call, what they say.

Every command answers, in time and only to the person who used it. Knows nothing of how settings are
validated and stored.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import discord
from discord import app_commands

from bot.conversation.parameters import PARAMETERS, find_parameter
from bot.conversation.permissions import may_moderate
from bot.conversation.preferences import MAX_SYSTEM_PROMPT_CHARS, Preferences
from bot.conversation.service import ChatService
from bot.errors import NotAllowedError, sentence_for
from bot.on_discord.interactions import Interaction, acknowledge, actor_of, conversation_of, reporting, say
from bot.texts import help_text, privacy_text

_log = logging.getLogger(__name__)

_MAX_SHOWN = 1900
"""Characters of a system prompt, so that they fit in one message."""
_NAMES = [app_commands.Choice(name=name, value=name) for name in PARAMETERS]
_CONTEXTS = app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=False)
_INSTALLS = app_commands.AppInstallationType(guild=True, user=False)


class Commands(app_commands.CommandTree[discord.Client]):
    """All commands of the bot, global, in servers and direct messages."""

    def __init__(self, client: discord.Client, chat: ChatService) -> None:
        super().__init__(client, allowed_contexts=_CONTEXTS, allowed_installs=_INSTALLS)
        self.add_command(SettingsCommands(chat.preferences))
        self.add_command(SystemCommands(chat.preferences))
        for command in conversation_commands(chat):
            self.add_command(command)

    async def on_error(self, interaction: Interaction, error: app_commands.AppCommandError) -> None:
        """Answer even where a command could not be called."""
        if isinstance(error, (app_commands.CommandNotFound, app_commands.CommandSignatureMismatch)):
            await say(interaction, "This command has just changed. Please try again in a minute.")
            return
        _log.error("A command failed", exc_info=error)
        await say(interaction, sentence_for(error))


def conversation_commands(chat: ChatService) -> list[app_commands.Command[Any, ..., None]]:
    """Return `/reset`, `/help` and `/privacy`."""

    @app_commands.command(name="reset", description="Forget this conversation (moderators)")
    @app_commands.default_permissions(manage_messages=True)
    async def reset(interaction: Interaction) -> None:
        async with reporting(interaction):
            _check_moderator(interaction)
            await acknowledge(interaction)
            num_messages = await chat.reset(
                conversation_of(interaction), by_user_id=interaction.user.id, at=datetime.now(UTC)
            )
            await say(interaction, f"Forgotten: {num_messages} messages. This conversation starts anew.")

    @app_commands.command(name="help", description="What I can do")
    async def help_(interaction: Interaction) -> None:
        await say(interaction, help_text(chat.engine.info))

    @app_commands.command(name="privacy", description="What I keep, where and how long")
    async def privacy(interaction: Interaction) -> None:
        await say(interaction, privacy_text())

    return [reset, help_, privacy]


class SettingsCommands(app_commands.Group):
    """`/settings`: how answers are made in this conversation."""

    def __init__(self, preferences: Preferences) -> None:
        super().__init__(name="settings", description="How answers are made here")
        self._preferences = preferences

    @app_commands.command(name="show", description="Show all settings of this conversation")
    async def show(self, interaction: Interaction) -> None:
        """Show every parameter."""
        async with reporting(interaction):
            await acknowledge(interaction)
            lines = await self._preferences.describe(conversation_of(interaction))
            await say(interaction, "\n".join(lines))

    @app_commands.command(name="set", description="Change a setting of this conversation (moderators)")
    @app_commands.describe(name="Which setting", value="Its new value, a number")
    @app_commands.choices(name=_NAMES)
    async def set(self, interaction: Interaction, name: str, value: app_commands.Range[str, 1, 32]) -> None:
        """Change one parameter."""
        async with reporting(interaction):
            _check_moderator(interaction)
            await acknowledge(interaction)
            ref = conversation_of(interaction)
            name, new = await self._preferences.set(ref, name, value, by_user_id=interaction.user.id)
            shown = find_parameter(name).format(new)
            await say(interaction, f"**{name}** is `{shown}` in this conversation from now on.")

    @app_commands.command(name="reset", description="Go back to the defaults (moderators)")
    @app_commands.describe(name="Which setting; all of them if left out")
    @app_commands.choices(name=_NAMES)
    async def reset(self, interaction: Interaction, name: str | None = None) -> None:
        """Go back to the default of one parameter, or of all."""
        async with reporting(interaction):
            _check_moderator(interaction)
            await acknowledge(interaction)
            num_changed = await self._preferences.reset(conversation_of(interaction), name)
            done = f"{num_changed} back to default." if num_changed else "Nothing had been changed."
            await say(interaction, f"Settings: {done}")


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
            origin = "set for this conversation" if is_own else "the default"
            quoted = discord.utils.escape_markdown(prompt) if prompt.strip() else "*(empty)*"
            shown = quoted if len(quoted) <= _MAX_SHOWN else f"{quoted[:_MAX_SHOWN]}…"
            await say(interaction, f"System prompt ({origin}):\n{shown}")

    @app_commands.command(name="set", description="Change the system prompt here (moderators)")
    @app_commands.describe(text="What the model should be told before every conversation")
    async def set(
        self, interaction: Interaction, text: app_commands.Range[str, 1, MAX_SYSTEM_PROMPT_CHARS]
    ) -> None:
        """Change the prompt."""
        async with reporting(interaction):
            _check_moderator(interaction)
            await acknowledge(interaction)
            ref = conversation_of(interaction)
            num_tokens = await self._preferences.set_system_prompt(ref, text, by_user_id=interaction.user.id)
            await say(interaction, f"The system prompt is changed; it takes {num_tokens} tokens.")

    @app_commands.command(name="clear", description="Go back to the default system prompt (moderators)")
    async def clear(self, interaction: Interaction) -> None:
        """Go back to the default."""
        async with reporting(interaction):
            _check_moderator(interaction)
            await acknowledge(interaction)
            was_own = await self._preferences.clear_system_prompt(conversation_of(interaction))
            done = "The default system prompt is back." if was_own else "It was the default already."
            await say(interaction, done)


def _check_moderator(interaction: Interaction) -> None:
    if not may_moderate(actor_of(interaction)):
        raise NotAllowedError("Only moderators (Manage Messages) may do that here.")
