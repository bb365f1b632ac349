"""Shows beside the bot's name how it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import discord

from bot.on_discord.answers.discord_outbox import DISCORD_FAILURES
from bot.operations.health import State, Vitals

_log = logging.getLogger(__name__)

INTERVAL_S = 15.0
"""Discord takes five changes in 20 seconds; nobody looks that often."""

_STATUSES = {
    State.READY: discord.Status.online,
    State.BUSY: discord.Status.idle,
    State.RECOVERING: discord.Status.dnd,
    State.CONNECTING: discord.Status.idle,
    State.FAILED: discord.Status.dnd,
}


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
        await asyncio.sleep(INTERVAL_S)
