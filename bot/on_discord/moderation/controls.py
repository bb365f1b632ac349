"""What Report and Undo do: who may press them, and on what.

The id in a button is not trusted: it counts only where it belongs.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import discord

from bot.conversation.service import ChatService
from bot.errors import ChatError, NotAllowedError, NotOfThisMessageError
from bot.language.phrases import phrase
from bot.on_discord.interactions import Interaction, acknowledge, reporting, say
from bot.servers.moderation import Moderation
from bot.servers.notices import Notice, NoticeKind
from bot.servers.rates import Buckets, Rate, loop_seconds
from storage.errors import NotFoundError
from storage.resets import Reset

_log = logging.getLogger(__name__)

REPORTS_PER_MINUTE = 5
"""By one person."""


class ModerationButtons:
    """Carries out the presses. Satisfies `ModerationControls`."""

    def __init__(self, chat: ChatService, moderation: Moderation) -> None:
        self._chat = chat
        self._moderation = moderation
        self._buckets = Buckets(loop_seconds)

    async def report(self, interaction: Interaction, answer_id: int) -> None:
        """Record a report and tell the moderators, with a link and without content."""
        async with reporting(interaction):
            await acknowledge(interaction)
            message = interaction.message
            if message is None or not await self._chat.is_shown_by(answer_id, message.id):
                raise NotOfThisMessageError
            rate = Rate(interaction.user.id, REPORTS_PER_MINUTE)
            if self._buckets.wait_s(rate) > 0:
                raise NotAllowedError(phrase("report.too_many"))
            self._buckets.take([rate])
            is_new = await self._moderation.reports.add(
                answer_id, by_user_id=interaction.user.id, at=datetime.now(UTC)
            )
            if not is_new:
                await say(interaction, phrase("report.twice"))
                return
            _log.warning("Answer %d was reported", answer_id)
            await say(interaction, phrase(await self._tell(interaction, message, answer_id)))

    async def undo_reset(self, interaction: Interaction, reset_id: int) -> None:
        """Bring back what a reset put aside."""
        async with reporting(interaction):
            await acknowledge(interaction)
            reset = await self._chat.conversations.find_reset(reset_id)
            if not _may_undo(interaction, reset):
                raise NotAllowedError(phrase("errors.not_a_moderator"))
            await bring_back(interaction, self._chat, self._moderation, reset)

    async def _tell(self, interaction: Interaction, message: discord.Message, answer_id: int) -> str:
        """Pass a report on; return the key of what its author is told."""
        guild_id = interaction.guild_id
        config = await self._moderation.servers.config(guild_id)
        if guild_id is None or config.log_channel is None:
            return "report.noted"
        self._moderation.notices.post(
            Notice(
                guild_id,
                NoticeKind.REPORTED,
                by_user_id=interaction.user.id,
                about_user_id=await self._chat.asker_of(answer_id),
                channel_id=message.channel.id,
                detail=message.jump_url,
            )
        )
        return "report.done"


async def bring_back(
    interaction: Interaction, chat: ChatService, moderation: Moderation, reset: Reset
) -> None:
    """Undo a reset and say so, or that it is too late."""
    by_user_id = interaction.user.id
    try:
        done = await chat.undo_reset(reset, by_user_id=by_user_id, at=datetime.now(UTC))
    except NotFoundError:
        raise ChatError(phrase("moderation.too_late")) from None
    if done.guild_id is not None:
        moderation.notices.post(
            Notice(
                done.guild_id,
                NoticeKind.RESET_UNDONE,
                by_user_id=by_user_id,
                channel_id=done.channel_id,
                num=done.num_messages,
            )
        )
    await say(interaction, phrase("moderation.undone", count=done.num_messages))


def _may_undo(interaction: Interaction, reset: Reset) -> bool:
    """Tell whether the person who acts moderates the place of a reset."""
    if reset.guild_id != interaction.guild_id:
        return False
    if reset.channel_id == interaction.channel_id:
        return reset.guild_id is None or interaction.permissions.manage_messages
    if interaction.guild is None or not isinstance(interaction.user, discord.Member):
        return False
    channel = interaction.guild.get_channel_or_thread(reset.channel_id)
    return channel is not None and channel.permissions_for(interaction.user).manage_messages
