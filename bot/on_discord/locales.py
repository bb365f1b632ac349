"""Which language is spoken where a message goes."""

from __future__ import annotations

import discord

from bot.language.catalog import ENGLISH


def locale_of(guild: discord.Guild | None) -> str:
    """Return the locale of everybody who reads along: the server's; direct messages do not tell theirs."""
    return ENGLISH if guild is None else str(guild.preferred_locale)
