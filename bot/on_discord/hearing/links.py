"""Links to messages: which of them may be opened where, so that nobody reads through us what they may not.

Pure but for discord.py's cache, whose permissions decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import discord

from bot.conversation.mentions import outside_quotes

MAX_LINKS = 3
_LINK = re.compile(
    r"https?://(?:(?:ptb|canary)\.)?discord(?:app)?\.com/channels/"
    r"(?P<guild>@me|[0-9]{15,20})/(?P<channel>[0-9]{15,20})/(?P<message>[0-9]{15,20})(?![0-9])"
)
_Readable = discord.TextChannel | discord.Thread
_READABLE = (discord.TextChannel, discord.Thread)


@dataclass(frozen=True, slots=True)
class MessageLink:
    """A link to a message. `guild_id` is None for direct messages."""

    guild_id: int | None
    channel_id: int
    message_id: int


@dataclass(frozen=True, slots=True)
class Readers:
    """Who asks, as a member of which server, and where the answer stands.

    `place` is None where nobody else reads it.
    """

    asker: discord.User | discord.Member
    guild: discord.Guild | None
    place: object | None


def links_in(content: str) -> list[MessageLink]:
    """Return the links to messages in what somebody wrote, each once; none in quotes and code."""
    found = {
        MessageLink(
            None if match["guild"] == "@me" else int(match["guild"]),
            int(match["channel"]),
            int(match["message"]),
        ): None
        for match in _LINK.finditer(outside_quotes(content))
    }
    return list(found)


def channel_to_open(link: MessageLink, readers: Readers) -> _Readable | discord.DMChannel | None:
    """Return the channel of a link if all who read the answer, and we, may read what stands there."""
    guild, place = readers.guild, readers.place
    if isinstance(place, discord.DMChannel) and (link.guild_id, link.channel_id) == (None, place.id):
        return place
    if guild is None or link.guild_id != guild.id:
        return None
    channel = guild.get_channel_or_thread(link.channel_id)
    if not isinstance(channel, _READABLE) or not isinstance(readers.asker, discord.Member):
        return None
    if not _may_read(channel, readers.asker) or not _may_read(channel, guild.me):
        return None
    if place is None or isinstance(place, discord.DMChannel) or channel == place:
        return channel
    is_private = isinstance(channel, discord.Thread) and channel.is_private()
    return channel if not is_private and _is_read_by_all_of(channel, place) else None


def _may_read(channel: _Readable, person: discord.Member) -> bool:
    if _home(channel) is None:
        return False
    allowed = channel.permissions_for(person)
    if not (allowed.view_channel and allowed.read_message_history):
        return False
    if isinstance(channel, discord.Thread) and channel.is_private():
        return allowed.manage_threads or any(member.id == person.id for member in channel.members)
    return True


def _is_read_by_all_of(channel: _Readable, place: object) -> bool:
    """Tell whether everybody who reads `place` may read `channel`, and what it had before they came."""
    there, here = _home(channel), _home(place)
    if there is None or here is None:
        return False
    if there == here:
        return True
    if getattr(there, "nsfw", False) and not getattr(here, "nsfw", False):
        return False
    if not _is_allowed_to_all(there, "read_message_history"):
        return False
    views = _overwrites(there, "view_channel")
    return _is_allowed_to_all(there, "view_channel") or views == _overwrites(here, "view_channel")


def _is_allowed_to_all(channel: discord.abc.GuildChannel, permission: str) -> bool:
    """Tell whether a channel allows something to everybody, and takes it away from nobody."""
    everybody, given = channel.guild.default_role, _overwrites(channel, permission)
    return given.get(everybody.id, getattr(everybody.permissions, permission)) and False not in given.values()


def _home(place: object) -> discord.abc.GuildChannel | None:
    """Return the channel whose permissions hold in a place: its own, or a thread's parent."""
    if isinstance(place, discord.Thread):
        return place.parent
    return place if isinstance(place, discord.abc.GuildChannel) else None


def _overwrites(channel: discord.abc.GuildChannel, permission: str) -> Mapping[int, bool]:
    """Return what a channel sets of a permission, by the id of the role or person it is set for."""
    given = ((target.id, getattr(overwrite, permission)) for target, overwrite in channel.overwrites.items())
    return {target_id: value for target_id, value in given if value is not None}
