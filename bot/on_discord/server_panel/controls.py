"""What the parts of the panel of `/config` do: who may use them, and what each changes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import discord
from discord import app_commands

from bot.conversation.preferences import Preferences
from bot.errors import ChatError, sentence_for
from bot.language.phrases import phrase
from bot.on_discord.interactions import (
    Interaction,
    acknowledge,
    check_manager,
    data_of,
    reporting,
    say,
    show_form,
    show_instead,
)
from bot.on_discord.prompts.drafts import Scope
from bot.on_discord.prompts.editor import PromptEditor
from bot.on_discord.server_panel.forms import FORM_PREFIX, FORMS, form, form_values
from bot.on_discord.server_panel.panel import AS_DISCORD_SAYS, SWITCHES, page_of, panel_text, panel_view
from bot.parameters import read_parameters
from bot.servers.server_config import ServerConfig, SettingError
from bot.servers.servers import Servers
from storage.errors import StorageError


class ConfigPanel:
    """Shows the panel and carries out what is done on it. Satisfies `ConfigControls`."""

    def __init__(
        self, servers: Servers, preferences: Preferences, editor: PromptEditor, *, sees_all: bool
    ) -> None:
        """`sees_all`: whether we get messages that do not mention us."""
        self._servers = servers
        self._preferences = preferences
        self._editor = editor
        self._sees_all = sees_all

    async def show(self, interaction: Interaction) -> None:
        """Show the panel to a manager of the server."""
        async with reporting(interaction):
            guild_id = check_manager(interaction)
            await acknowledge(interaction)
            config = await self._servers.config(guild_id)
            await say(interaction, *panel_text(config), view=panel_view(config, interaction.locale))

    async def press(self, interaction: Interaction, name: str, value: str | None) -> None:
        """Change what a menu or a button is for, turn the page, or open a form."""
        async with reporting(interaction):
            guild_id = check_manager(interaction)
            config = await self._servers.config(guild_id)
            if name in FORMS:
                await show_form(interaction, form(name, config, interaction.locale))
                return
            if name == "prompt":
                await self._editor.open(interaction, Scope.SERVER)
                return
            await acknowledge(interaction)
            if name == "page":
                await _show_page(interaction, config, 2 if value == "second" else 1)
                return
            selected = [str(one) for one in data_of(interaction).get("values", ())]
            changes = _changes(interaction, name, value, selected)
            if changes.get("free_channels") and not self._sees_all:
                raise SettingError(phrase("free.no_intent"))
            config = await self._servers.change(guild_id, changes, by_user_id=interaction.user.id)
            await _show_page(interaction, config, page_of(name))

    async def submit(self, interaction: Interaction) -> None:
        """Take a form that was sent off. What cannot be taken is given back, so that nothing is lost."""
        data = data_of(interaction)
        settings = FORMS.get(str(data.get("custom_id", "")).removeprefix(FORM_PREFIX), ())
        async with reporting(interaction):
            guild_id = check_manager(interaction)
            await acknowledge(interaction)
            written = form_values(data)
            try:
                config = await self._take(
                    interaction, guild_id, {one: written.get(one, "") for one in settings}
                )
                await _show_page(interaction, config, page_of(next(iter(settings), "")))
            except (ChatError, StorageError) as error:
                given_back = "\n\n".join(written.values()).encode("utf-8", "replace")
                file = discord.File(io.BytesIO(given_back), "input.txt")
                await say(interaction, sentence_for(error), file=file)

    async def _take(
        self, interaction: Interaction, guild_id: int, written: Mapping[str, str]
    ) -> ServerConfig:
        """Change settings to what was written in a form. Raises `ChatError` or `StorageError`."""
        by_user_id = interaction.user.id
        if "answer_defaults" in written:
            given = read_parameters(written["answer_defaults"])
            return await self._preferences.set_all_for_server(
                self._servers, guild_id, given, by_user_id=by_user_id
            )
        changes = {setting: _read(setting, text) for setting, text in written.items()}
        return await self._servers.change(guild_id, changes, by_user_id=by_user_id)


def is_config_form(interaction: Interaction) -> bool:
    """Tell whether an interaction is a form of this panel."""
    data = data_of(interaction)
    is_form = interaction.type is discord.InteractionType.modal_submit
    return is_form and str(data.get("custom_id", "")).startswith(FORM_PREFIX)


async def _show_page(interaction: Interaction, config: ServerConfig, page: int) -> None:
    view = panel_view(config, interaction.locale, page)
    await show_instead(interaction, *panel_text(config, page), view=view)


def _changes(
    interaction: Interaction, name: str, value: str | None, selected: list[str]
) -> Mapping[str, object]:
    """Return the settings that a menu or button changes, and to what. Raises `SettingError`."""
    match name:
        case "age":
            return {"age_restricted": value}
        case "switches":
            return {switch: switch in selected for switch in SWITCHES}
        case "language":
            return {name: next((one for one in selected if one != AS_DISCORD_SAYS), None)}
        case "allowed_channels" | "allowed_roles" | "free_channels":
            return {name: [int(one) for one in selected if one.isdecimal()]}
        case "log_channel":
            ids = [int(one) for one in selected if one.isdecimal()]
            return {name: _log_channel(interaction, ids[0]) if ids else None}
    raise SettingError(phrase("errors.command_changed"))


def _log_channel(interaction: Interaction, channel_id: int) -> int:
    """Return a channel of this server that we can write to. Raises `SettingError`."""
    guild = interaction.guild
    channel = None if guild is None else guild.get_channel(channel_id)
    if guild is None or channel is None:
        raise SettingError(phrase("config.no_such_channel"))
    allowed = channel.permissions_for(guild.me)
    if not (allowed.view_channel and allowed.send_messages):
        raise SettingError(phrase("config.log_closed"))
    return channel_id


def _read(setting: str, written: str) -> object:
    """Return what was written in a field as a setting is given. Raises `SettingError`."""
    if not setting.endswith("_per_minute"):
        return written.splitlines()
    text = written.strip()
    if text and not text.isdecimal():
        raise SettingError(phrase("config.bad_limit"))
    return int(text) if text else None


def config_command(panel: ConfigPanel) -> app_commands.Command[Any, ..., None]:
    """Return `/config`."""

    @app_commands.command(name="config", description="The settings of this server (Manage Server)")
    @app_commands.default_permissions(manage_guild=True)
    @app_commands.guild_only()
    async def config(interaction: Interaction) -> None:
        await panel.show(interaction)

    return config
