"""Discord's message objects to the plain values that `mentions` decides on."""

from __future__ import annotations

import re

import discord

from bot.conversation.mentions import Bot, Incoming, Names, outside_quotes
from bot.on_discord.interactions import Interaction
from bot.origin import Origin


def bot_of(user: discord.ClientUser, guild: discord.Guild | None) -> Bot:
    """Return who we are in this server."""
    role = None if guild is None else guild.self_role
    # Of a server that we are no member of, and where a command was used all the same, little is known.
    name = user.display_name if guild is None or guild.me is None else guild.me.display_name
    return Bot(user.id, name, None if role is None else role.id)


def incoming_of(message: discord.Message) -> Incoming:
    """Return what decides whether a message is for us."""
    spoken = outside_quotes(message.content)
    replied = None if message.reference is None else message.reference.resolved
    return Incoming(
        author_id=message.author.id,
        is_bot=message.author.bot,
        is_webhook=message.webhook_id is not None,
        is_ordinary=message.type in (discord.MessageType.default, discord.MessageType.reply),
        is_direct=message.guild is None,
        mentioned_user_ids=frozenset(
            user.id for user in message.mentions if re.search(rf"<@!?{user.id}>", spoken)
        ),
        mentioned_role_ids=frozenset(role.id for role in message.role_mentions if role.mention in spoken),
        replied_author_id=replied.author.id if isinstance(replied, discord.Message) else None,
    )


def names_of(message: discord.Message) -> Names:
    """Return what the ids in a message stand for."""
    return Names(
        users={user.id: user.display_name for user in message.mentions},
        roles={role.id: role.name for role in message.role_mentions},
        channels={channel.id: channel.name for channel in message.channel_mentions},
    )


def may_answer(message: discord.Message) -> bool:
    """Tell whether we may write where the message is; unknown counts as yes, Discord will say."""
    channel = message.channel
    if message.guild is None or not isinstance(channel, (discord.abc.GuildChannel, discord.Thread)):
        return True
    permissions = channel.permissions_for(message.guild.me)
    if isinstance(channel, discord.Thread):
        return permissions.view_channel and permissions.send_messages_in_threads
    return permissions.view_channel and permissions.send_messages


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
