"""Who speaks or acts, where, and in which language: Discord's objects as values that all else decides on."""

from __future__ import annotations

import hashlib
import re
from typing import cast

import discord

from bot.conversation.mentions import Bot, Incoming, Names, outside_quotes
from bot.conversation.preferences import Surroundings
from bot.language.phrases import ENGLISH
from bot.origin import Actor, Origin
from bot.servers.servers import Servers
from storage.conversations import ConversationKind, ConversationRef
from storage.errors import StorageError

Interaction = discord.Interaction[discord.Client]
Channel = (
    discord.TextChannel
    | discord.VoiceChannel
    | discord.StageChannel
    | discord.Thread
    | discord.DMChannel
    | discord.GroupChannel
    | discord.PartialMessageable
)
"""Where a message can be, as discord.py has it."""
_FIRST_PRIVATE_ID = 1 << 62
_MENTION = re.compile(r"(?<!\\)<@!?([0-9]{1,20})>")


class Locales:
    """The languages of all servers: what their moderators chose, or what Discord says."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def of(self, guild: discord.Guild | None) -> str:
        """Return the locale of all who read along; direct messages do not tell theirs. Never raises."""
        if guild is None:
            return ENGLISH
        try:
            chosen = (await self._servers.config(guild.id)).language
        except StorageError:
            chosen = None
        return chosen or str(guild.preferred_locale)


def actor_of(interaction: Interaction) -> Actor:
    """Return who acts, with the permissions that Discord resolved for this channel."""
    return Actor(
        user_id=interaction.user.id,
        is_direct=interaction.guild_id is None,
        can_manage_messages=interaction.permissions.manage_messages,
    )


def bot_of(user: discord.ClientUser, guild: discord.Guild | None) -> Bot:
    """Return who we are in this server."""
    role = None if guild is None else guild.self_role
    # Of a server that we are no member of, and where a command was used all the same, little is known.
    name = user.display_name if guild is None or guild.me is None else guild.me.display_name
    return Bot(user.id, name, None if role is None else role.id)


def surroundings_of(client: discord.Client, guild_id: int | None, channel_id: int | None) -> Surroundings:
    """Return the names that a system prompt may speak of."""
    guild = None if guild_id is None else client.get_guild(guild_id)
    us = client.user if guild is None else guild.me
    return Surroundings(
        bot=None if us is None else us.display_name,
        server="" if guild is None else guild.name,
        channel=None if channel_id is None else _name_of_place(client, guild, channel_id),
    )


def _name_of_place(client: discord.Client, guild: discord.Guild | None, channel_id: int) -> str | None:
    """Return the name of a channel; None if it is not known.

    A thread that we opened is called by a question, which a system prompt must not say: its channel counts.
    """
    channel = client.get_channel(channel_id)
    if isinstance(channel, discord.Thread) and guild is not None and channel.owner_id == guild.me.id:
        channel = channel.parent
    return None if channel is None and guild is not None else str(getattr(channel, "name", ""))


def incoming_of(message: discord.Message) -> Incoming:
    """Return what decides whether a message is for us."""
    spoken = outside_quotes(message.content)
    replied = None if message.reference is None else message.reference.resolved
    us = None if message.guild is None else message.guild.self_role
    return Incoming(
        author_id=message.author.id,
        is_bot=message.author.bot,
        is_webhook=message.webhook_id is not None,
        is_ordinary=message.type in (discord.MessageType.default, discord.MessageType.reply),
        is_direct=message.guild is None,
        mentioned_user_ids=frozenset(int(one) for one in _MENTION.findall(spoken)),
        mentioned_role_ids=frozenset(
            # Of a text that Discord does not show us, it still tells which roles are in it.
            role.id
            for role in message.role_mentions
            if role.mention in spoken or not message.content
        ),
        replied_author_id=replied.author.id if isinstance(replied, discord.Message) else None,
        text=message.content,
        names_others=message.mention_everyone
        or any(user.id != message.author.id for user in message.mentions)
        or any(role != us for role in message.role_mentions),
        is_reply=message.type is discord.MessageType.reply,
        has_more=bool(message.attachments or message.message_snapshots),
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
        is_open = not channel.locked or permissions.manage_threads
        return is_open and permissions.view_channel and permissions.send_messages_in_threads
    return permissions.view_channel and permissions.send_messages


def may_open(thread: discord.Thread) -> bool:
    """Tell whether to open an archived thread again: one that moderators locked is theirs to open."""
    me: discord.Member | None = thread.guild.me  # None where the server is not there for now
    return (
        not thread.locked
        and me is not None
        and thread.parent is not None
        and thread.permissions_for(me).send_messages_in_threads
    )


def may_embed(channel: object) -> bool:
    """Tell whether we may show embeds in a channel; unknown counts as yes."""
    if not isinstance(channel, (discord.abc.GuildChannel, discord.Thread)):
        return True
    me: discord.Member | None = channel.guild.me
    return me is None or channel.permissions_for(me).embed_links


def origin_of_message(message: discord.Message) -> Origin:
    """Return who wrote a message, and where."""
    channel, author = message.channel, message.author
    rights = discord.Permissions.none()
    is_place = isinstance(channel, (discord.abc.GuildChannel, discord.Thread))
    if is_place and isinstance(author, discord.Member):
        rights = channel.permissions_for(author)
    return _origin(author, channel, channel.id, message.guild, rights)


def origin_of(interaction: Interaction) -> Origin:
    """Return who used a command or a button, and where."""
    return _origin(
        interaction.user,
        interaction.channel,
        interaction.channel_id or 0,
        interaction.guild_id,
        interaction.permissions,
    )


def _origin(
    person: discord.User | discord.Member,
    channel: object,
    channel_id: int,
    guild: discord.Guild | int | None,
    rights: discord.Permissions,
) -> Origin:
    parent_id = channel.parent_id if isinstance(channel, discord.Thread) else channel_id
    return Origin(
        user_id=person.id,
        channel_id=channel_id,
        guild_id=guild.id if isinstance(guild, discord.Guild) else guild,
        place_ids=frozenset({channel_id, parent_id}),
        role_ids=frozenset(role.id for role in getattr(person, "roles", ())),
        is_moderator=rights.manage_messages,
        is_age_restricted=_is_age_restricted(channel),
        reads_back=rights.read_message_history,
    )


def _is_age_restricted(channel: object) -> bool:
    """Tell whether Discord shows a channel to adults only; a thread is as its channel is."""
    if isinstance(channel, discord.Thread):
        return channel.parent is not None and channel.parent.is_nsfw()
    return bool(getattr(channel, "nsfw", False))


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


def _private_id(user_id: int, channel_id: int) -> int:
    """Return the id of a person's own conversation in a place, above all that Discord gives until 2049."""
    digest = hashlib.blake2b(f"{user_id}:{channel_id}".encode(), digest_size=8).digest()
    return _FIRST_PRIVATE_ID | int.from_bytes(digest, "big") >> 2


def are_we_there(interaction: Interaction) -> bool:
    """Tell whether we are ourselves in the place of an interaction.

    We are not where a person uses us who installed us for themselves: on servers that we are no member of, in
    groups, and in other people's direct messages. discord.py makes a server and a channel of those, too.
    """
    if interaction.guild_id is None:
        return isinstance(interaction.channel, discord.DMChannel) and not interaction.context.private_channel
    return interaction.client.get_guild(interaction.guild_id) is not None


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
    if isinstance(channel, discord.Thread) and channel.locked and not allowed.manage_threads:
        return None
    return cast("Channel", channel) if allowed.view_channel and may_send else None
