"""The bot's way onto Discord: what it asks for, how it stays connected, and what is shown beside its name.

Says in a sentence why it cannot be connected. Knows nothing of what the bot does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import aiohttp
import discord

from bot.on_discord.interactions import DISCORD_FAILURES
from bot.on_discord.traffic import ShortBackoff
from bot.operations.health import State, Vitals
from bot.tasks import Tasks

_log = logging.getLogger(__name__)

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
PRESENCE_INTERVAL_S = 15.0
"""Discord takes five changes in 20 seconds; nobody looks that often."""
_STATUSES = {
    State.READY: discord.Status.online,
    State.BUSY: discord.Status.idle,
    State.RECOVERING: discord.Status.dnd,
    State.CONNECTING: discord.Status.idle,
    State.FAILED: discord.Status.dnd,
}
_LOST = (
    "Another process has taken over our shards, since this one did not respond for too long. Start it again."
)
_UNREACHABLE = "Discord cannot be reached. Check the network and start again."


class StartError(Exception):
    """The bot cannot start or cannot go on. The message is a sentence for the operator."""


async def connect(
    client: discord.Client,
    token: str,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    lost: asyncio.Event | None = None,
) -> None:
    """Keep `client` connected until `stop` is set, then close it.

    Raises `StartError`, also once `lost` is set: another process does our work.
    """
    lost = lost or asyncio.Event()

    async def greet() -> None:
        await client.wait_until_ready()
        on_ready(str(client.user))

    async with client, Tasks() as tasks:
        connection = asyncio.create_task(_start(client, token))
        stopping = tasks.start(stop.wait(), "waiting for the end")
        losing = tasks.start(lost.wait(), "waiting for others to do our work")
        tasks.start(greet(), "greeting")
        try:
            await asyncio.wait((connection, stopping, losing), return_when=asyncio.FIRST_COMPLETED)
            if connection.done():
                await connection
            if lost.is_set():
                raise StartError(_LOST)
            await client.close()  # while the connection still lives: running answers are marked
        finally:
            connection.cancel()
            await asyncio.wait({connection})


async def _start(client: discord.Client, token: str) -> None:
    """Log in and stay connected. Turns what Discord's library raises into `StartError`."""
    # discord.py offers no other way to set its pauses.
    for module in (discord.client, discord.shard):
        setattr(module, "ExponentialBackoff", ShortBackoff)  # noqa: B010
    try:
        await client.start(token)
    except discord.LoginFailure as error:
        raise StartError(
            "Discord refused DISCORD_TOKEN. Copy the token again from your application's Bot page."
        ) from error
    except discord.PrivilegedIntentsRequired as error:
        raise StartError(
            "Discord does not give the bot the Message Content Intent. Switch it on on the Bot page of your "
            "application, or set MESSAGE_CONTENT_INTENT=off."
        ) from error
    except (discord.DiscordServerError, discord.GatewayNotFound) as error:
        raise StartError("Discord has a fault at the moment. Start again in a few minutes.") from error
    except discord.DiscordException as error:
        raise StartError(f"Discord ended the connection: {error}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise StartError(_UNREACHABLE) from error
    except AttributeError as error:
        if client.shard_count not in (None, 1) or client.ws is not None:
            raise
        # discord.py 2.7 looks at the connection that it lost even if there never was one.
        raise StartError(_UNREACHABLE) from error


def presence_of(vitals: Vitals) -> tuple[discord.Status, str]:
    """Return the colour and the words, which are the same for everybody and so as few as possible. Pure."""
    status = _STATUSES[vitals.state]
    if vitals.state is State.BUSY:
        return status, f"Busy: {vitals.num_waiting} waiting"
    return status, str(vitals.state).capitalize()


async def keep_presence(client: discord.Client, vitals: Callable[[], Vitals]) -> None:
    """Change the presence whenever something else is to be shown, for ever."""
    shown: tuple[discord.Status, str] | None = None
    await client.wait_until_ready()
    while True:
        wanted = presence_of(vitals())
        if wanted != shown and not client.is_closed():
            try:
                await client.change_presence(
                    status=wanted[0], activity=discord.CustomActivity(name=wanted[1])
                )
                shown = wanted
            except DISCORD_FAILURES as error:
                _log.debug("The presence could not be changed: %s", type(error).__name__)
        await asyncio.sleep(PRESENCE_INTERVAL_S)


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
