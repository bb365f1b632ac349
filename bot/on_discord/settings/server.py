"""`/config`, `/free` and `/embeds`: what a server sets, who may, and what each part of the panel changes.

Knows nothing of how settings are checked and stored, nor of how a message is found to be for us.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import discord
from discord import app_commands

from bot.conversation.preferences import Preferences
from bot.errors import ChatError, NotAllowedError, sentence_for
from bot.language.phrases import phrase
from bot.on_discord.interactions import (
    acknowledge,
    check_manager,
    data_of,
    reporting,
    say,
    show_form,
    show_instead,
    text_file,
    typed_in,
)
from bot.on_discord.origins import Interaction
from bot.on_discord.settings.panel import (
    AS_DISCORD_SAYS,
    FORMS,
    NUMBERS,
    SWITCHES,
    form,
    page_of,
    panel_text,
    panel_view,
)
from bot.on_discord.settings.system_prompt import PromptEditor, Scope
from bot.parameters import read_parameters
from bot.servers.server_config import ServerConfig, SettingError
from bot.servers.servers import Servers
from storage.errors import StorageError

NEED_ALL = ("free_channels", "thread_channels", "reads_along")
"""Settings that are of use only where we see messages that do not mention us."""


class ConfigPanel:
    """Shows the panel, and carries out what is done on it."""

    def __init__(
        self, servers: Servers, preferences: Preferences, editor: PromptEditor, *, sees_all: bool
    ) -> None:
        """`sees_all`: whether we get messages that do not mention us."""
        self._servers = servers
        self._preferences = preferences
        self._editor = editor
        self._sees_all = sees_all

    def command(self) -> app_commands.Command[Any, ..., None]:
        """Return `/config`."""

        @app_commands.command(name="config", description="The settings of this server (Manage Server)")
        @app_commands.default_permissions(manage_guild=True)
        @app_commands.guild_only()
        async def config(interaction: Interaction) -> None:
            await self.show(interaction)

        return config

    async def show(self, interaction: Interaction) -> None:
        """Show the panel to a manager of the server."""
        async with reporting(interaction):
            guild_id = check_manager(interaction)
            await acknowledge(interaction)
            config = await self._servers.config(guild_id)
            await say(interaction, *panel_text(config), view=panel_view(config, interaction.locale))

    async def press(self, interaction: Interaction, argument: str) -> None:
        """Change what a menu or a button is for, turn the page, or open a form."""
        name, _, value = argument.partition(":")
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
            if not self._sees_all and any(changes.get(one) and not getattr(config, one) for one in NEED_ALL):
                raise SettingError(phrase("free.no_intent"))
            config = await self._servers.change(guild_id, changes, by_user_id=interaction.user.id)
            await _show_page(interaction, config, page_of(name))

    async def submit(self, interaction: Interaction, name: str) -> None:
        """Take a form that was sent off. What cannot be taken is given back, so that nothing is lost."""
        settings = FORMS.get(name, ())
        async with reporting(interaction):
            guild_id = check_manager(interaction)
            await acknowledge(interaction)
            written = typed_in(interaction)
            try:
                config = await self._take(
                    interaction, guild_id, {one: written.get(one, "") for one in settings}
                )
                await _show_page(interaction, config, page_of(next(iter(settings), "")))
            except (ChatError, StorageError) as error:
                given_back = text_file("input.txt", "\n\n".join(written.values()))
                await say(interaction, sentence_for(error), file=given_back)

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


async def _show_page(interaction: Interaction, config: ServerConfig, page: int) -> None:
    view = panel_view(config, interaction.locale, page)
    await show_instead(interaction, *panel_text(config, page), view=view)


def _changes(interaction: Interaction, name: str, value: str, selected: list[str]) -> Mapping[str, object]:
    """Return the settings that a menu or button changes, and to what. Raises `SettingError`."""
    match name:
        case "age":
            return {"age_restricted": value}
        case "switches":
            return {switch: switch in selected for switch in SWITCHES}
        case "language":
            return {name: next((one for one in selected if one != AS_DISCORD_SAYS), None)}
        case "allowed_channels" | "allowed_roles" | "free_channels" | "thread_channels":
            return {name: [int(one) for one in selected if one.isdecimal()]}
        case "proxies":
            people = data_of(interaction).get("resolved", {}).get("users", {})
            if not all(people.get(one, {}).get("bot") for one in selected):
                raise SettingError(phrase("config.not_a_bot"))
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
    if setting not in NUMBERS:
        return written.splitlines()
    text = written.strip()
    if not text.isdecimal():
        return text or None  # what is no number is refused as a setting, with what may be one
    return int(text[:9])
