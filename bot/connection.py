"""Keeps the bot connected to Discord until it is stopped, and says in a sentence why it cannot be.

Knows nothing of what the bot does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
import discord

from bot.tasks import Tasks

_UNREACHABLE = "Discord cannot be reached. Check the network and start again."


class StartError(Exception):
    """The bot cannot start or cannot go on. The message is a sentence for the operator."""


async def connect(
    client: discord.Client, token: str, *, stop: asyncio.Event, on_ready: Callable[[str], None]
) -> None:
    """Keep `client` connected until `stop` is set, then close it. Raises `StartError`."""

    async def greet() -> None:
        await client.wait_until_ready()
        on_ready(str(client.user))

    async with client, Tasks() as tasks:
        connection = asyncio.create_task(_start(client, token))
        stopping = tasks.start(stop.wait(), "waiting for the end")
        tasks.start(greet(), "greeting")
        try:
            await asyncio.wait((connection, stopping), return_when=asyncio.FIRST_COMPLETED)
            if connection.done():
                await connection
            await client.close()  # while the connection still lives: running answers are marked
        finally:
            connection.cancel()
            await asyncio.wait({connection})


async def _start(client: discord.Client, token: str) -> None:
    """Log in and stay connected. Turns what Discord's library raises into `StartError`."""
    try:
        await client.start(token)
    except discord.LoginFailure as error:
        raise StartError(
            "Discord refused DISCORD_TOKEN. Copy the token anew from the Bot page of your application."
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
        if client.ws is not None:
            raise
        # discord.py 2.7 looks at the connection that it lost even if there never was one.
        raise StartError(_UNREACHABLE) from error
