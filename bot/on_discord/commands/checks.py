"""Who may use a command, checked where it runs: an administrator may have opened it to anybody."""

from __future__ import annotations

from bot.conversation.permissions import may_moderate
from bot.errors import NotAllowedError
from bot.language.phrases import phrase
from bot.on_discord.interactions import Interaction, actor_of


def check_moderator(interaction: Interaction) -> None:
    """Raise `NotAllowedError` unless the person who acts may moderate here."""
    if not may_moderate(actor_of(interaction)):
        raise NotAllowedError(phrase("errors.not_a_moderator"))


def check_manager(interaction: Interaction) -> int:
    """Return the server. Raises `NotAllowedError` for anybody but those who manage it."""
    if interaction.guild_id is None:
        raise NotAllowedError(phrase("moderation.only_in_servers"))
    if not interaction.permissions.manage_guild:
        raise NotAllowedError(phrase("moderation.not_a_manager"))
    return interaction.guild_id
