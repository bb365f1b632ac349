"""Notes which servers we left and which channels were deleted, so that what is kept of them can go.

Knows nothing of when it goes. No method raises.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import discord

from storage.errors import StorageError
from storage.retention import Place, Retention

_log = logging.getLogger(__name__)


class Departures:
    """Told by the client what happened."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention

    async def compare(self, guilds: Iterable[discord.Guild]) -> None:
        """Take the servers we are in now as they are: anything may have happened while we were away."""
        try:
            await self._retention.compare_servers([guild.id for guild in guilds])
        except StorageError as error:
            _log.error("The servers could not be compared with what is kept: %s", error)

    async def joined(self, guild: discord.Guild) -> None:
        """We are in a server, perhaps again."""
        try:
            await self._retention.mark_back(guild.id)
        except StorageError as error:
            _log.error("A server that we are in again could not be noted: %s", error)

    async def removed(self, guild: discord.Guild) -> None:
        """We are in a server no longer."""
        _log.info("Removed from a server; what is kept of it will be deleted")
        await self._mark(Place.SERVER, guild.id)

    async def channel_deleted(self, channel: discord.abc.GuildChannel) -> None:
        """A channel is gone, and with it the threads in it."""
        for thread in getattr(channel, "threads", ()):
            await self._mark(Place.CHANNEL, thread.id)
        await self._mark(Place.CHANNEL, channel.id)

    async def thread_deleted(self, thread_id: int) -> None:
        """A thread is gone."""
        await self._mark(Place.CHANNEL, thread_id)

    async def _mark(self, place: Place, discord_id: int) -> None:
        try:
            await self._retention.mark_gone(place, discord_id)
        except StorageError as error:
            _log.error("A place that is gone could not be noted: %s", error)
