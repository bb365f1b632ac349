"""All commands of the bot in one tree, and what is said where a command could not even be called."""

from __future__ import annotations

import logging

import discord
from discord import app_commands

from bot.conversation.service import ChatService
from bot.errors import sentence_for
from bot.language.phrases import phrase
from bot.on_discord.asking import Asking
from bot.on_discord.commands.ask import ask_commands
from bot.on_discord.commands.block import block_commands
from bot.on_discord.commands.config import config_command
from bot.on_discord.commands.conversation import conversation_commands
from bot.on_discord.commands.free import free_commands
from bot.on_discord.commands.history import history_commands
from bot.on_discord.commands.privacy import privacy_commands
from bot.on_discord.commands.reset import reset_command
from bot.on_discord.commands.settings import SettingsCommands
from bot.on_discord.commands.steering import steering_commands
from bot.on_discord.commands.system import SystemCommands
from bot.on_discord.config_controls import ConfigPanel
from bot.on_discord.controls import MakeAnswer
from bot.on_discord.interactions import Interaction, say
from bot.on_discord.prompt_editor import PromptEditor
from bot.privacy.privacy import Privacy
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
