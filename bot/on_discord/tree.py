"""All commands of the bot in one tree, and what is said where a command could not even be called."""

from __future__ import annotations

import logging
from typing import Any

import discord
from discord import app_commands

from bot.conversation.service import ChatService
from bot.errors import sentence_for
from bot.language.phrases import phrase, together
from bot.on_discord.answers.controls import MakeAnswer
from bot.on_discord.asking.asking import Asking
from bot.on_discord.asking.command import ask_commands
from bot.on_discord.asking.history_pages import history_commands
from bot.on_discord.asking.steering import steering_commands
from bot.on_discord.interactions import Interaction, say
from bot.on_discord.moderation.block import block_commands
from bot.on_discord.moderation.reset import reset_command
from bot.on_discord.privacy import privacy_commands
from bot.on_discord.prompts.command import SystemCommands
from bot.on_discord.prompts.editor import PromptEditor
from bot.on_discord.server_panel.controls import ConfigPanel, config_command
from bot.on_discord.server_panel.free import free_commands
from bot.on_discord.settings import SettingsCommands
from bot.privacy.sweeper import Privacy
from bot.servers.moderation import Moderation

_log = logging.getLogger(__name__)

_CONTEXTS = app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=False)
_INSTALLS = app_commands.AppInstallationType(guild=True, user=False)


class Commands(app_commands.CommandTree[discord.Client]):
    """All commands of the bot, global, in servers and direct messages."""

    def __init__(
        self,
        client: discord.Client,
        chat: ChatService,
        moderation: Moderation,
        privacy: Privacy,
        panel: ConfigPanel,
        editor: PromptEditor,
        asking: Asking,
        make_answer: MakeAnswer,
        *,
        sees_all: bool = False,
    ) -> None:
        super().__init__(client, allowed_contexts=_CONTEXTS, allowed_installs=_INSTALLS)
        self.add_command(SettingsCommands(chat.preferences, chat.system_prompts, moderation.servers))
        self.add_command(SystemCommands(chat.system_prompts, editor))
        for command in (
            *conversation_commands(chat),
            *steering_commands(chat, make_answer),
            *ask_commands(asking),
            *privacy_commands(chat, privacy),
            reset_command(chat, moderation),
            *block_commands(chat, moderation),
            config_command(panel),
            *free_commands(moderation.servers, sees_all=sees_all),
            *history_commands(chat),
        ):
            self.add_command(command)

    async def on_error(self, interaction: Interaction, error: app_commands.AppCommandError) -> None:
        """Answer even where a command could not be called."""
        if isinstance(error, (app_commands.CommandNotFound, app_commands.CommandSignatureMismatch)):
            await say(interaction, phrase("errors.command_changed"))
            return
        _log.error("A command failed", exc_info=error)
        await say(interaction, sentence_for(error))


def conversation_commands(chat: ChatService) -> list[app_commands.Command[Any, ..., None]]:
    """Return `/help`."""

    @app_commands.command(name="help", description="What I can do")
    async def help_(interaction: Interaction) -> None:
        info = chat.engine.info
        text = phrase("help", model=info.name)
        await say(interaction, text if info.chat_format else together(phrase("errors.no_chat_format"), text))

    return [help_]
