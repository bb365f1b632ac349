"""What the parts of the panel of `/config` do: who may use them, and what each changes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import discord

from bot.errors import NotAllowedError, sentence_for
from bot.language.phrases import phrase
from bot.on_discord.config_panel import FORMS, PREFIX, SWITCHES, form, form_values, panel_text, panel_view
from bot.on_discord.interactions import (
    Interaction,
    acknowledge,
    data_of,
    reporting,
    say,
    show_form,
    show_instead,
)
from bot.servers.moderation import Moderation
from bot.servers.notices import Notice, NoticeKind
from bot.servers.server_config import SettingError
from storage.errors import StorageError


class ConfigPanel:
    """Shows the panel and carries out what is done on it. Satisfies `ConfigControls`."""

    def __init__(self, moderation: Moderation) -> None:
        self._moderation = moderation

    async def show(self, interaction: Interaction) -> None:
        """Show the panel to a manager of the server."""
        async with reporting(interaction):
            guild_id = _managed_guild(interaction)
            await acknowledge(interaction)
            config = await self._moderation.servers.config(guild_id)
            await say(interaction, *panel_text(config), view=panel_view(config, interaction.locale))

    async def press(self, interaction: Interaction, name: str, value: str | None) -> None:
        """Change what a menu or a button is for, or open a form."""
        async with reporting(interaction):
            guild_id = _managed_guild(interaction)
            if name in FORMS:
                config = await self._moderation.servers.config(guild_id)
                await show_form(interaction, form(name, config, interaction.locale))
                return
            await acknowledge(interaction)
            data = data_of(interaction)
            selected = [str(one) for one in data.get("values", ())]
            await self._change(interaction, guild_id, _changes(interaction, name, value, selected))

    async def submit(self, interaction: Interaction) -> None:
        """Take a form that was sent off. What cannot be taken is given back, so that nothing is lost."""
        data = data_of(interaction)
        name = str(data.get("custom_id", "")).removeprefix(PREFIX)
        async with reporting(interaction):
            guild_id = _managed_guild(interaction)
            await acknowledge(interaction)
            written = form_values(data)
            try:
                changes = {
                    setting: _read(setting, written.get(setting, "")) for setting in FORMS.get(name, ())
                }
                await self._change(interaction, guild_id, changes)
            except (SettingError, StorageError) as error:
                given_back = "\n\n".join(written.values()).encode("utf-8", "replace")
                file = discord.File(io.BytesIO(given_back), "input.txt")
                await say(interaction, sentence_for(error), file=file)

    async def _change(self, interaction: Interaction, guild_id: int, changes: Mapping[str, object]) -> None:
        config = await self._moderation.servers.change(guild_id, changes, by_user_id=interaction.user.id)
        for name in changes:
            self._moderation.notices.post(
                Notice(guild_id, NoticeKind.CONFIG_CHANGED, by_user_id=interaction.user.id, detail=name)
            )
        await show_instead(interaction, *panel_text(config), view=panel_view(config, interaction.locale))


def is_config_form(interaction: Interaction) -> bool:
    """Tell whether an interaction is a form of this panel."""
    data = data_of(interaction)
    is_form = interaction.type is discord.InteractionType.modal_submit
    return is_form and str(data.get("custom_id", "")).startswith(PREFIX)


def _managed_guild(interaction: Interaction) -> int:
    """Return the server. Raises `NotAllowedError` for anybody but those who manage it."""
    if interaction.guild_id is None:
        raise NotAllowedError(phrase("moderation.only_in_servers"))
    if not interaction.permissions.manage_guild:
        raise NotAllowedError(phrase("moderation.not_a_manager"))
    return interaction.guild_id


def _changes(
    interaction: Interaction, name: str, value: str | None, selected: list[str]
) -> Mapping[str, object]:
    """Return the settings that a menu or button changes, and to what. Raises `SettingError`."""
    match name:
        case "age":
            return {"age_restricted": value}
        case "switches":
            return {switch: switch in selected for switch in SWITCHES}
        case "allowed_channels" | "allowed_roles":
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
