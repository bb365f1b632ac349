"""`/stop`, `/undo`, `/regenerate` and `/continue`: what one does with the last turn.

Knows nothing of how answers are made or forgotten.
"""

from __future__ import annotations

import logging
from typing import Any

import discord
from discord import app_commands

from bot.conversation.permissions import may_steer
from bot.conversation.service import ChatService
from bot.conversation.steering import MaySteer
from bot.errors import CannotWriteError
from bot.language.phrases import phrase
from bot.on_discord.answers.discord_answer import MakeAnswer
from bot.on_discord.interactions import DISCORD_FAILURES, answering, say
from bot.on_discord.origins import Interaction, actor_of, conversation_of, origin_of, writable_channel

_log = logging.getLogger(__name__)


def steering_commands(
    chat: ChatService, make_answer: MakeAnswer
) -> list[app_commands.Command[Any, ..., None]]:
    """Return the commands that act on the last turn."""

    @app_commands.command(name="stop", description="Stop the answer that is being written")
    async def stop(interaction: Interaction) -> None:
        async with answering(interaction):
            chat.steering.stop(interaction.channel_id or 0, _may(interaction))
            await say(interaction, phrase("answer.stopped"))

    @app_commands.command(name="undo", description="Take the last question and its answer back")
    async def undo(interaction: Interaction) -> None:
        async with answering(interaction):
            turn = await chat.steering.undo(conversation_of(interaction), _may(interaction))
            await _delete(writable_channel(interaction), turn.part_ids)
            await say(interaction, phrase("turns.undone"))

    @app_commands.command(name="regenerate", description="Answer the last question again")
    async def regenerate(interaction: Interaction) -> None:
        await again(interaction, go_on=False)

    @app_commands.command(name="continue", description="Go on with the last answer where it ended")
    async def continue_(interaction: Interaction) -> None:
        await again(interaction, go_on=True)

    async def again(interaction: Interaction, *, go_on: bool) -> None:
        async with answering(interaction):
            channel = writable_channel(interaction)
            if channel is None:
                raise CannotWriteError
            turn = await chat.steering.newest(conversation_of(interaction), _may(interaction))
            view = await make_answer(channel, None)
            await chat.regenerate(channel.id, turn.answer.id, view, origin_of(interaction), go_on=go_on)
            await say(interaction, phrase("turns.going_on" if go_on else "turns.again"))

    return [stop, undo, regenerate, continue_]


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
