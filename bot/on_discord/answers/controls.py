"""What the buttons below an answer do: who may press them, and on which answer.

The id in a button is not trusted: it counts only if the message with the button shows that answer.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import discord

from bot.conversation.permissions import may_steer
from bot.conversation.service import ChatService
from bot.errors import NotAllowedError, NotOfThisMessageError
from bot.language.phrases import phrase
from bot.on_discord.answers.discord_answer import MakeAnswer
from bot.on_discord.interactions import answering, say
from bot.on_discord.origins import Interaction, actor_of, origin_of
from bot.servers.moderation import Moderation
from bot.servers.notices import Notice, NoticeKind
from bot.servers.rates import Buckets, Rate, loop_seconds

_log = logging.getLogger(__name__)

REPORTS_PER_MINUTE = 5
"""By one person."""


class AnswerControls:
    """Carries out the presses of Stop, Regenerate, Continue and Report."""

    def __init__(self, chat: ChatService, moderation: Moderation, make_answer: MakeAnswer) -> None:
        self._chat = chat
        self._moderation = moderation
        self._make_answer = make_answer
        self._reports = Buckets(loop_seconds)

    async def stop(self, interaction: Interaction, answer_id: int) -> None:
        """End a running or waiting answer."""
        async with answering(interaction):
            await self._check(interaction, answer_id)
            if not self._chat.stop(answer_id):
                await say(interaction, phrase("answer.ended_already"))

    async def regenerate(self, interaction: Interaction, answer_id: int) -> None:
        """Make another answer in the same messages."""
        await self._again(interaction, answer_id, go_on=False)

    async def continue_(self, interaction: Interaction, answer_id: int) -> None:
        """Go on with an answer in the same messages."""
        await self._again(interaction, answer_id, go_on=True)

    async def report(self, interaction: Interaction, answer_id: int) -> None:
        """Record a report and tell the moderators, with a link and without content."""
        async with answering(interaction):
            message = await self._message(interaction, answer_id)
            user_id = interaction.user.id
            rate = Rate(user_id, REPORTS_PER_MINUTE)
            if self._reports.wait_s(rate) > 0:
                raise NotAllowedError(phrase("report.too_many"))
            self._reports.take([rate])
            at = datetime.now(UTC)
            if not await self._moderation.reports.add(answer_id, by_user_id=user_id, at=at):
                await say(interaction, phrase("report.twice"))
                return
            _log.warning("Answer %d was reported", answer_id)
            await say(interaction, phrase(await self._tell(interaction, message, answer_id)))

    async def _again(self, interaction: Interaction, answer_id: int, *, go_on: bool) -> None:
        async with answering(interaction):
            message = await self._check(interaction, answer_id)
            trigger_id = None if message.reference is None else message.reference.message_id
            view = await self._make_answer(message.channel, trigger_id)
            origin = origin_of(interaction)
            await self._chat.regenerate(message.channel.id, answer_id, view, origin, go_on=go_on)

    async def _check(self, interaction: Interaction, answer_id: int) -> discord.Message:
        """Return the message with the button. Raises where the person who acts may not steer the answer."""
        message = await self._message(interaction, answer_id)
        if not may_steer(actor_of(interaction), await self._chat.asker_of(answer_id)):
            raise NotAllowedError(phrase("errors.not_the_asker"))
        return message

    async def _message(self, interaction: Interaction, answer_id: int) -> discord.Message:
        """Return the message with the button. Raises where it does not show the answer."""
        message = interaction.message
        if message is None or not await self._chat.is_shown_by(answer_id, message.id):
            raise NotOfThisMessageError
        return message

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
