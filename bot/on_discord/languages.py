"""Names and descriptions of commands in the languages of `bot.language`, for discord.py to register.

Knows which key of a catalog's table `commands` belongs to what discord.py asks for.
"""

from __future__ import annotations

import discord
from discord import app_commands
from discord.app_commands import TranslationContextLocation as Location

from bot.language.catalog import ENGLISH, catalog, language_of
from bot.servers.servers import Servers
from storage.errors import StorageError

_DESCRIPTIONS = {
    Location.command_description,
    Location.group_description,
    Location.parameter_description,
}


class CommandTranslator(app_commands.Translator):
    """Translates what the catalogs know; everything else stays English."""

    async def translate(
        self,
        string: app_commands.locale_str,
        locale: discord.Locale,
        context: app_commands.TranslationContextTypes,
    ) -> str | None:
        """Return the name or description for `locale`, or None to keep the English one."""
        language = language_of(locale)
        if language == ENGLISH:
            return None
        translation = catalog(language).commands.get(_key(string, context), ())
        index = 1 if context.location in _DESCRIPTIONS else 0
        return translation[index] if index < len(translation) else None


def _key(string: app_commands.locale_str, context: app_commands.TranslationContextTypes) -> str:
    match context.data:
        case app_commands.Parameter() as parameter:
            return f"{parameter.command.qualified_name}:{parameter.name}"
        case app_commands.Choice():
            return f"={string.message}"
        case described:
            return described.qualified_name


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
