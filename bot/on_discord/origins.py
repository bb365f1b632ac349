"""Discord's messages and interactions to the `Origin` that a server's rules look at."""

from __future__ import annotations

import discord

from bot.on_discord.interactions import Interaction
from bot.servers.origin import Origin


def origin_of_message(message: discord.Message) -> Origin:
    """Return who wrote a message, and where."""
    channel, author = message.channel, message.author
    is_moderator = (
        isinstance(author, discord.Member)
        and isinstance(channel, (discord.abc.GuildChannel, discord.Thread))
        and channel.permissions_for(author).manage_messages
    )
    return _origin(author, channel, channel.id, message.guild, is_moderator=is_moderator)


def origin_of(interaction: Interaction) -> Origin:
    """Return who used a command or a button, and where."""
    return _origin(
        interaction.user,
        interaction.channel,
        interaction.channel_id or 0,
        interaction.guild_id,
        is_moderator=interaction.permissions.manage_messages,
    )


def _origin(
    person: discord.User | discord.Member,
    channel: object,
    channel_id: int,
    guild: discord.Guild | int | None,
    *,
    is_moderator: bool,
) -> Origin:
    parent_id = channel.parent_id if isinstance(channel, discord.Thread) else channel_id
    return Origin(
        user_id=person.id,
        channel_id=channel_id,
        guild_id=guild.id if isinstance(guild, discord.Guild) else guild,
        place_ids=frozenset({channel_id, parent_id}),
        role_ids=frozenset(role.id for role in getattr(person, "roles", ())),
        is_moderator=is_moderator,
        is_age_restricted=_is_age_restricted(channel),
    )


def _is_age_restricted(channel: object) -> bool:
    """Tell whether Discord shows a channel to adults only; a thread is as its channel is."""
    if isinstance(channel, discord.Thread):
        return channel.parent is not None and channel.parent.is_nsfw()
    return bool(getattr(channel, "nsfw", False))
