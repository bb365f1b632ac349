"""What one does with an answer, by command or by a button below it: stop, undo, regenerate, continue, report.

The id in a button is not trusted: it counts only if the message with the button shows that answer. Knows
nothing of how answers are made or forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import discord
from discord import app_commands

from bot.conversation.service import ChatService
from bot.conversation.upkeep import MaySteer
from bot.errors import CannotWriteError, NotAllowedError, NotOfThisMessageError
from bot.language.phrases import phrase
from bot.on_discord.answers.discord_answer import MakeAnswer
from bot.on_discord.interactions import DISCORD_FAILURES, answering, say
from bot.on_discord.origins import (
    Channel,
    Interaction,
    actor_of,
    conversation_of,
    origin_of,
    writable_channel,
)
from bot.origin import may_steer
from bot.servers.moderation import Moderation
from bot.servers.rates import Buckets, Rate, loop_seconds
from bot.servers.servers import Notice, NoticeKind

_log = logging.getLogger(__name__)

REPORTS_PER_MINUTE = 5
"""By one person."""


class AnswerControls:
    """Carries out the commands, and the presses of Stop, Regenerate, Continue and Report."""

    def __init__(
        self,
        chat: ChatService,
        moderation: Moderation,
        make_answer: MakeAnswer,
        on_stale: Callable[[int, int], None],
    ) -> None:
        """`on_stale` is told of channel and answer where a button stands below an answer that has ended."""
        self._on_stale = on_stale
        self._chat = chat
        self._moderation = moderation
        self._make_answer = make_answer
        self._reports = Buckets(loop_seconds)

    def commands(self) -> list[app_commands.Command[Any, ..., None]]:
        """Return `/stop`, `/undo`, `/regenerate` and `/continue`, which act on the last turn."""
        steering = self._chat.steering

        @app_commands.command(name="stop", description="Stop the answer that is being written")
        async def stop(interaction: Interaction) -> None:
            async with answering(interaction):
                steering.stop(interaction.channel_id or 0, _may(interaction))
                await say(interaction, phrase("answer.stopped"))

        @app_commands.command(name="undo", description="Take back the last question and its answer")
        async def undo(interaction: Interaction) -> None:
            async with answering(interaction):
                turn = await steering.undo(conversation_of(interaction), _may(interaction))
                await _delete(writable_channel(interaction), turn.part_ids)
                await say(interaction, phrase("turns.undone"))

        @app_commands.command(name="regenerate", description="Answer the last question again")
        async def regenerate(interaction: Interaction) -> None:
            await again(interaction, go_on=False)

        @app_commands.command(name="continue", description="Continue the last answer where it ended")
        async def continue_(interaction: Interaction) -> None:
            await again(interaction, go_on=True)

        async def again(interaction: Interaction, *, go_on: bool) -> None:
            async with answering(interaction):
                channel = writable_channel(interaction)
                if channel is None:
                    raise CannotWriteError
                turn = await steering.newest(conversation_of(interaction), _may(interaction))
                await self._make_again(interaction, channel, None, turn.answer.id, go_on=go_on)
                await say(interaction, phrase("turns.going_on" if go_on else "turns.again"))

        return [stop, undo, regenerate, continue_]

    async def stop(self, interaction: Interaction, answer_id: int) -> None:
        """End a running or waiting answer."""
        async with answering(interaction):
            await self._check(interaction, answer_id)
            if not self._chat.stop(answer_id):
                if not self._chat.is_unshown(answer_id):
                    self._on_stale(interaction.channel_id or 0, answer_id)
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
            await self._make_again(interaction, message.channel, trigger_id, answer_id, go_on=go_on)

    async def _make_again(
        self,
        interaction: Interaction,
        channel: Channel,
        trigger_id: int | None,
        answer_id: int,
        *,
        go_on: bool,
    ) -> None:
        view = await self._make_answer(channel, trigger_id)
        await self._chat.regenerate(channel.id, answer_id, view, origin_of(interaction), go_on=go_on)

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


def _may(interaction: Interaction) -> MaySteer:
    actor = actor_of(interaction)
    return lambda asker_id: may_steer(actor, asker_id)


async def _delete(channel: discord.abc.Messageable | None, part_ids: tuple[int, ...]) -> None:
    """Delete our messages of an answer that is forgotten; what cannot be deleted stays as it is."""
    for part_id in part_ids if channel is not None else ():
        try:
            await discord.PartialMessage(channel=channel, id=part_id).delete()  # type: ignore[arg-type]
        except DISCORD_FAILURES as error:
            _log.info("A message of an undone answer could not be deleted: %s", type(error).__name__)
