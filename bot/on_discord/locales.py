"""Which language is spoken where a message goes."""

from __future__ import annotations

import discord

from bot.language.catalog import ENGLISH
from bot.servers.servers import Servers
from storage.errors import StorageError


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
