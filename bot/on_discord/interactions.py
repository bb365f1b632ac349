"""Small helpers around a Discord interaction: who acts, where, and answering in time, always.

Knows nothing of commands and buttons.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

import discord

from bot.conversation.permissions import Actor, may_moderate
from bot.errors import ChatError, NotAllowedError, is_expected, sentence_for
from bot.language.phrases import phrase, render
from bot.on_discord.answers.discord_outbox import DISCORD_FAILURES, SILENT, Channel
from bot.tasks import Tasks
from storage.conversations import ConversationKind, ConversationRef

_log = logging.getLogger(__name__)

Interaction = discord.Interaction[discord.Client]

PATIENCE_S = 2.0
"""How long an interaction may go without a first answer; Discord gives it up after 3 seconds."""
_ACKNOWLEDGED = 40060
_FIRST_PRIVATE_ID = 1 << 62
_MESSAGES = {
    discord.InteractionResponseType.channel_message,
    discord.InteractionResponseType.deferred_channel_message,
}


class _Act(Protocol):
    async def __call__(self, *, is_known: bool) -> object: ...


def actor_of(interaction: Interaction) -> Actor:
    """Return who acts, with the permissions that Discord resolved for this channel."""
    return Actor(
        user_id=interaction.user.id,
        is_direct=interaction.guild_id is None,
        can_manage_messages=interaction.permissions.manage_messages,
    )


def are_we_there(interaction: Interaction) -> bool:
    """Tell whether we are ourselves in the place of an interaction.

    We are not where a person uses us who installed us for themselves: on servers that we are no member of, in
    groups, and in other people's direct messages. discord.py makes a server and a channel of those, too.
    """
    if interaction.guild_id is None:
        return isinstance(interaction.channel, discord.DMChannel) and not interaction.context.private_channel
    return interaction.client.get_guild(interaction.guild_id) is not None


def conversation_of(interaction: Interaction) -> ConversationRef:
    """Return the conversation that the interaction happened in.

    Where we are not ourselves, that is a private one of the person who acts: nobody else there is part of it.
    """
    channel_id = interaction.channel_id or 0
    if not are_we_there(interaction):
        own_id = _private_id(interaction.user.id, channel_id)
        return ConversationRef(own_id, ConversationKind.DIRECT, None)
    return ref_of(channel_id, interaction.channel, interaction.guild_id)


def ref_of(channel_id: int, channel: object, guild_id: int | None) -> ConversationRef:
    """Return the conversation of a channel; a thread is one of its own."""
    if guild_id is None:
        return ConversationRef(channel_id, ConversationKind.DIRECT, None)
    kind = ConversationKind.THREAD if isinstance(channel, discord.Thread) else ConversationKind.CHANNEL
    return ConversationRef(channel_id, kind, guild_id)


def writable_channel(interaction: Interaction) -> Channel | None:
    """Return the channel of an interaction if we may write there as ourselves, else None.

    We may not where we are not ourselves: an installation for one person alone lets us answer commands only.
    """
    channel = interaction.channel
    if not are_we_there(interaction):
        return None
    if isinstance(channel, discord.DMChannel):
        return channel
    if not isinstance(channel, (discord.abc.GuildChannel, discord.Thread)):
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
    embed: discord.Embed | None = None,
) -> None:
    """Answer in the language of the person who acts, so that only they see it. Never raises."""
    text = "\n".join(render(line, interaction.locale) for line in lines)
    shown = view or discord.utils.MISSING
    embeds = [] if embed is None else [embed]

    async def send(*, is_known: bool) -> None:
        if file is not discord.utils.MISSING:
            file.reset()
        if not is_known:
            await interaction.response.send_message(
                text, ephemeral=True, allowed_mentions=SILENT, view=shown, file=file, embeds=embeds
            )
        elif _has_own_message(interaction):
            files = [] if file is discord.utils.MISSING else [file]
            await interaction.edit_original_response(
                content=text, allowed_mentions=SILENT, view=view, attachments=files, embeds=embeds
            )
        else:
            await interaction.followup.send(
                text, ephemeral=True, allowed_mentions=SILENT, view=shown, file=file, embeds=embeds
            )

    await _attempt(interaction, send)


async def show_instead(
    interaction: Interaction,
    *lines: str,
    view: discord.ui.View | None = None,
    embed: discord.Embed | None = None,
) -> None:
    """Put this in the place of the message whose button or menu was used. Never raises."""
    text = "\n".join(render(line, interaction.locale) for line in lines)

    async def edit(*, is_known: bool) -> None:
        if is_known:
            await interaction.edit_original_response(
                content=text, view=view, embed=embed, allowed_mentions=SILENT
            )
        else:
            await interaction.response.edit_message(
                content=text, view=view, embed=embed, allowed_mentions=SILENT
            )

    await _attempt(interaction, edit)


async def show_form(interaction: Interaction, form: discord.ui.Modal) -> None:
    """Show a form, which only a first answer can. Raises `ChatError` where it is too late for one."""
    if interaction.response.is_done():
        raise ChatError(phrase("errors.not_taken"))
    await interaction.response.send_modal(form)


async def acknowledge(interaction: Interaction) -> None:
    """Tell Discord within its 3 seconds that an answer follows. Never raises."""

    async def defer(*, is_known: bool) -> None:
        if not is_known:
            is_command = interaction.type is discord.InteractionType.application_command
            await interaction.response.defer(ephemeral=is_command)

    await _attempt(interaction, defer)


async def acknowledge_with(interaction: Interaction, *, is_private: bool) -> None:
    """Tell Discord that an answer follows, for everybody or for the person who acts. Never raises."""

    async def defer(*, is_known: bool) -> None:
        if not is_known:
            await interaction.response.defer(ephemeral=is_private, thinking=True)

    await _attempt(interaction, defer)


def sentence_of(error: Exception) -> str:
    """Return what the person who acts is told of an exception, and log a fault."""
    if isinstance(error, DISCORD_FAILURES):
        _log.warning("Discord did not take the answer to an interaction: %s", _kind_of(error))
        return phrase("errors.not_taken")
    if not is_expected(error):
        _log.error("An interaction failed", exc_info=error)
    return sentence_for(error)


@asynccontextmanager
async def reporting(interaction: Interaction) -> AsyncIterator[None]:
    """Turn any exception of the body into a sentence for the person who acts.

    A body that takes its time is acknowledged before Discord gives the interaction up.
    """
    async with Tasks() as tasks:
        tasks.start(_acknowledge_in_time(interaction), "acknowledging in time")
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the edge: an interaction always gets an answer
            await say(interaction, sentence_of(error))


async def _acknowledge_in_time(interaction: Interaction) -> None:
    await asyncio.sleep(PATIENCE_S)
    await acknowledge(interaction)


async def _attempt(interaction: Interaction, act: _Act) -> None:
    """Do what answers an interaction, a second time if need be: Discord's faults are mostly short ones.

    `is_known` tells `act` whether Discord has had a first answer, also one whose receipt we never got.
    """
    is_known = interaction.response.is_done()
    for _ in range(2):
        try:
            await act(is_known=is_known)
        except DISCORD_FAILURES as error:
            _log.warning("Discord did not take what answers an interaction: %s", _kind_of(error))
            if isinstance(error, discord.NotFound):
                return
            is_known = interaction.response.is_done() or getattr(error, "code", 0) == _ACKNOWLEDGED
        else:
            return


def _private_id(user_id: int, channel_id: int) -> int:
    """Return the id of a person's own conversation in a place, above all that Discord gives until 2049."""
    digest = hashlib.blake2b(f"{user_id}:{channel_id}".encode(), digest_size=8).digest()
    return _FIRST_PRIVATE_ID | int.from_bytes(digest, "big") >> 2


def _has_own_message(interaction: Interaction) -> bool:
    """Tell whether the first answer is a message of this interaction, and not the one with the button."""
    if interaction.response.type is None:
        return interaction.type is discord.InteractionType.application_command
    return interaction.response.type in _MESSAGES


def _kind_of(error: Exception) -> str:
    if isinstance(error, discord.HTTPException):
        return f"status {error.status}, code {error.code}"
    return type(error).__name__


def check_moderator(interaction: Interaction) -> None:
    """Raise `NotAllowedError` unless the person who acts may moderate here."""
    if not may_moderate(actor_of(interaction)):
        raise NotAllowedError(phrase("errors.not_a_moderator"))


def check_manager(interaction: Interaction) -> int:
    """Return the server. Raises `NotAllowedError` for anybody but those who manage it."""
    if interaction.guild_id is None:
        raise NotAllowedError(phrase("moderation.only_in_servers"))
    if not interaction.permissions.manage_guild:
        raise NotAllowedError(phrase("moderation.not_a_manager"))
    return interaction.guild_id
