"""Follows what changes on Discord: messages that were taken and are edited or deleted, places that are gone.

Knows nothing of when what is kept of a place goes. Nothing here raises.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import discord

from bot.conversation.mentions import Bot
from bot.conversation.service import ChatService
from bot.delivery.delivery import MAX_PARTS
from bot.delivery.outbox import Buttons
from bot.delivery.render import stretches
from bot.errors import is_expected
from bot.on_discord.answers.outboxes import answer_view
from bot.on_discord.asking.messages import MessageIntake
from bot.on_discord.asking.questions import Questions
from bot.on_discord.interactions import DISCORD_FAILURES, SILENT
from bot.on_discord.origins import Locales, origin_of_message
from storage.errors import StorageError
from storage.retention import Place, Retention
from storage.turns import NewestTurn

_log = logging.getLogger(__name__)


class MessageChanges:
    """Keeps what was taken in step with Discord. Never raises."""

    def __init__(
        self, chat: ChatService, questions: Questions, locales: Locales, intake: MessageIntake
    ) -> None:
        self._chat = chat
        self._questions = questions
        self._locales = locales
        self._intake = intake

    async def edited(self, message: discord.Message, bot: Bot) -> None:
        """Take an edited question in the place of what was asked, or as a question if it was none."""
        arrival = self._chat.arrivals.find(message.channel.id, message.id)
        if arrival is not None:
            arrival.edit(message)
        try:
            async with self._chat.upkeep.edits.turn(message.id):
                if arrival is not None:  # what came too late to be taken with it is an edit after all
                    await arrival.has_left.wait()
                turn = await self._edited(message, bot)
        except Exception as error:  # noqa: BLE001 - the edge of an event: an edit that cannot be taken
            if not is_expected(error):
                _log.exception("An edit could not be followed")
            return
        if turn is not None and turn.part_ids:
            await _offer_redo(message, turn, await self._locales.of(message.guild))

    async def _edited(self, message: discord.Message, bot: Bot) -> NewestTurn | None:
        """Return the turn if its answer could be made again."""
        if await self._chat.conversations.find_by_discord_id(message.id) is None:
            await self._intake.take_edited(message, bot)
            return None
        content = await self._questions.content_of(message, bot)
        await self._chat.check_text(origin_of_message(message), content)
        return await self._chat.upkeep.question_edited(message.channel.id, message.id, content)

    async def deleted(self, channel_id: int, message_id: int) -> None:
        """Forget what was deleted, unless it lives on in a copy."""
        await self._intake.proxies.deleted(channel_id, message_id)
        try:
            await self._chat.upkeep.message_deleted(channel_id, message_id, cut_as_shown)
        except StorageError as error:
            _log.error("A deleted message could not be forgotten: %s", error)


async def _offer_redo(message: discord.Message, turn: NewestTurn, locale: str) -> None:
    """Put a button below the answer to a question that was edited afterwards."""
    view = answer_view(turn.answer.id, Buttons.REDO, locale)
    thread = None if message.guild is None else message.guild.get_thread(message.id)
    part = discord.PartialMessage(channel=thread or message.channel, id=turn.part_ids[-1])
    try:
        await part.edit(view=view, allowed_mentions=SILENT)
    except DISCORD_FAILURES as error:
        _log.info("An edited question could not be offered again: %s", type(error).__name__)


def cut_as_shown(text: str) -> list[str]:
    """Return what of an answer's text each of its messages shows."""
    return stretches(text, MAX_PARTS)


class Departures:
    """Follows which servers we left and which channels were deleted: nothing is answered there, and what is
    kept of them can go.
    """

    def __init__(self, chat: ChatService, retention: Retention) -> None:
        self._chat = chat
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
        self._chat.server_gone(guild.id)
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
        if place is Place.CHANNEL:
            self._chat.place_gone(discord_id)
        try:
            await self._retention.mark_gone(place, discord_id)
        except StorageError as error:
            _log.error("A place that is gone could not be noted: %s", error)
