"""What the bot needs of Discord: its intents, its permissions, and the link that grants them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import discord

PERMISSIONS = discord.Permissions(
    view_channel=True,
    send_messages=True,
    send_messages_in_threads=True,
    read_message_history=True,
    attach_files=True,
)
"""To answer, to reply, and to send answers that are too long as a file."""
_SHOWN = {"read_messages": "View Channels"}
SCOPES = ("bot", "applications.commands")


def intents(*, sees_all_messages: bool) -> discord.Intents:
    """Return what we want to be told: nothing that is privileged, unless it is to see all messages."""
    return discord.Intents(
        guilds=True, guild_messages=True, dm_messages=True, message_content=sees_all_messages
    )


def privileged(wanted: discord.Intents) -> list[str]:
    """Return the names of the intents that must be switched on for the application."""
    names = {"members": "Server Members", "presences": "Presence", "message_content": "Message Content"}
    return [shown for name, shown in names.items() if getattr(wanted, name)]


def permission_names(permissions: Iterable[tuple[str, bool]]) -> list[str]:
    """Return the names of permissions as Discord's pages show them."""
    names = [name for name, is_granted in permissions if is_granted]
    return [_SHOWN.get(name, name.replace("_", " ").title().replace(" In ", " in ")) for name in names]


def invite_link(application_id: int) -> str:
    """Return the link with which the manager of a server adds the bot to it."""
    return discord.utils.oauth_url(application_id, permissions=PERMISSIONS, scopes=SCOPES)
