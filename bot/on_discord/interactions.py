"""Small helpers around a Discord interaction: who acts, where, and answering in time, always.

Knows nothing of commands and buttons.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import discord

from bot.conversation.permissions import Actor
from bot.errors import is_expected, sentence_for
from bot.language.phrases import render
from bot.on_discord.discord_outbox import Channel
from storage.conversations import ConversationKind, ConversationRef

_log = logging.getLogger(__name__)

Interaction = discord.Interaction[discord.Client]


def actor_of(interaction: Interaction) -> Actor:
    """Return who acts, with the permissions that Discord resolved for this channel."""
    return Actor(
        user_id=interaction.user.id,
        is_direct=interaction.guild_id is None,
        can_manage_messages=interaction.permissions.manage_messages,
    )


def conversation_of(interaction: Interaction) -> ConversationRef:
    """Return the conversation that the interaction happened in."""
    channel_id = interaction.channel_id or 0
    return ref_of(channel_id, interaction.channel, interaction.guild_id)


def ref_of(channel_id: int, channel: object, guild_id: int | None) -> ConversationRef:
    """Return the conversation of a channel; a thread is one of its own."""
    if guild_id is None:
        return ConversationRef(channel_id, ConversationKind.DIRECT, None)
    kind = ConversationKind.THREAD if isinstance(channel, discord.Thread) else ConversationKind.CHANNEL
    return ConversationRef(channel_id, kind, guild_id)


def writable_channel(interaction: Interaction) -> Channel | None:
    """Return the channel of an interaction if we may write there as ourselves, else None.

    We may not where we are not a member: an installation for one person alone lets us answer commands only.
    """
    channel = interaction.channel
    if interaction.guild_id is None:
        return channel if isinstance(channel, discord.DMChannel) else None
    if interaction.guild is None or not isinstance(channel, (discord.abc.GuildChannel, discord.Thread)):
        return None
    allowed = interaction.app_permissions
    in_thread = isinstance(channel, discord.Thread)
    may_send = allowed.send_messages_in_threads if in_thread else allowed.send_messages
    return cast("Channel", channel) if allowed.view_channel and may_send else None


def data_of(interaction: Interaction) -> Mapping[str, Any]:
    """Return what Discord sent with the interaction, as it sent it."""
    data: Any = interaction.data
    return data or {}


async def say(
    interaction: Interaction,
    *lines: str,
    view: discord.ui.View | None = None,
    file: discord.File = discord.utils.MISSING,
) -> None:
    """Answer in the language of the person who acts, so that only they see it. Never raises."""
    text = "\n".join(render(line, interaction.locale) for line in lines)
    silent = discord.AllowedMentions.none()
    try:
        if not interaction.response.is_done():
            await interaction.response.send_message(
                text, ephemeral=True, allowed_mentions=silent, view=view or discord.utils.MISSING, file=file
            )
        elif interaction.type is discord.InteractionType.component:
            await interaction.followup.send(
                text, ephemeral=True, allowed_mentions=silent, view=view or discord.utils.MISSING, file=file
            )
        else:
            files = [] if file is discord.utils.MISSING else [file]
            await interaction.edit_original_response(
                content=text, allowed_mentions=silent, view=view, attachments=files
            )
    except discord.HTTPException as error:
        _log.warning("An interaction could not be answered: status %d, code %d", error.status, error.code)


async def acknowledge(interaction: Interaction) -> None:
    """Tell Discord within its 3 seconds that an answer follows. Never raises."""
    try:
        if interaction.type is discord.InteractionType.component:
            await interaction.response.defer()
        else:
            await interaction.response.defer(ephemeral=True)
    except discord.HTTPException as error:
        _log.warning("An interaction came too late: status %d, code %d", error.status, error.code)


async def acknowledge_with(interaction: Interaction, *, is_private: bool) -> None:
    """Tell Discord that an answer follows, for everybody or for the person who acts. Never raises."""
    try:
        await interaction.response.defer(ephemeral=is_private, thinking=True)
    except discord.HTTPException as error:
        _log.warning("An interaction came too late: status %d, code %d", error.status, error.code)


def log_fault() -> None:
    """Log the exception being handled as a fault of ours."""
    _log.exception("An interaction failed")


@asynccontextmanager
async def reporting(interaction: Interaction) -> AsyncIterator[None]:
    """Turn any exception of the body into a sentence for the person who acts."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the edge: an interaction always gets an answer
        if not is_expected(error):
            _log.exception("An interaction failed")
        await say(interaction, sentence_for(error))
