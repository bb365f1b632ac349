"""The part of `check` that is about Discord. Asks nothing of Discord: it needs no network."""

from __future__ import annotations

from collections.abc import Iterator

from bot.config import Settings
from bot.finding import Finding
from bot.on_discord.invite import PERMISSIONS, intents, invite_link, permission_names, privileged
from bot.parsers import bot_id


def check_discord(settings: Settings) -> Iterator[Finding]:
    """Say whose token it is, which switches the application needs, and how to invite it."""
    if settings.discord_token is None:
        yield Finding(True, "Token", "none; `run` opens the playground. Set DISCORD_TOKEN for Discord.")
        return
    application_id = bot_id(settings.discord_token)
    yield Finding(True, "Token", f"has the right shape; it is of the bot {application_id}.")
    needed = privileged(intents(sees_all_messages=settings.sees_all_messages))
    switches = (
        f"switch on {', '.join(needed)}" if needed else "no privileged one is needed: leave all switches off"
    )
    yield Finding(True, "Intents", f"{switches} on the Bot page of the application.")
    if application_id is not None:
        granted = ", ".join(permission_names(PERMISSIONS))
        yield Finding(True, "Invite", f"{invite_link(application_id)} adds the bot to a server ({granted}).")
