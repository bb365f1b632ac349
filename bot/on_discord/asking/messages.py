"""What a message becomes: a question that is answered, one that is refused, or none of our business.

Whoever is to be answered gets an answer or a sentence. Knows nothing of the connection.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import discord

from bot.conversation.intake import Arrival
from bot.conversation.mentions import Bot, is_for_us, is_from_a_person
from bot.conversation.service import ChatService
from bot.errors import BlockedError, NotHereError, RefusalError, is_expected, sentence_for
from bot.language.phrases import render
from bot.on_discord.answers.discord_answer import MakeAnswer
from bot.on_discord.asking.questions import Questions
from bot.on_discord.interactions import DISCORD_FAILURES, SILENT
from bot.on_discord.origins import Locales, incoming_of, may_answer, ref_of
from bot.servers.rates import RefusalPace, loop_seconds
from bot.servers.servers import Servers
from storage.errors import DuplicateMessageError, StorageError

_log = logging.getLogger(__name__)

OnRefusal = Callable[[Exception], None]
"""Told of every question that is not taken, and why."""


class MessageIntake:
    """Takes messages as they come."""

    def __init__(
        self,
        chat: ChatService,
        servers: Servers,
        questions: Questions,
        locales: Locales,
        make_answer: MakeAnswer,
        on_refusal: OnRefusal,
        *,
        sees_all: bool,
    ) -> None:
        """`sees_all`: whether we get messages that do not mention us."""
        self._chat = chat
        self._servers = servers
        self._questions = questions
        self._locales = locales
        self._make_answer = make_answer
        self._on_refusal = on_refusal
        self._sees_all = sees_all
        self._refusal_pace = RefusalPace(loop_seconds)

    async def take(self, message: discord.Message, bot: Bot) -> None:
        """Answer what is meant for us."""
        if message.guild is None and not isinstance(message.channel, discord.DMChannel):
            _log.info("A message came from a server that Discord has not announced")
            return  # without its server it would look like a direct message
        incoming = incoming_of(message)
        is_addressed = is_for_us(incoming, bot)
        if is_addressed or is_from_a_person(incoming):
            await self._ask(message, bot, is_addressed=is_addressed)

    async def _ask(self, message: discord.Message, bot: Bot, *, is_addressed: bool) -> None:
        refusal: Exception | None = None
        with self._chat.arrivals.enter(message.channel.id, message.id, message.author.id) as arrival:
            try:
                await self._take_in(message, bot, arrival, is_addressed=is_addressed)
            except DuplicateMessageError:
                _log.info("A question arrived twice")
            except Exception as error:  # noqa: BLE001 - the edge: whoever asks gets an answer
                refusal = error
        if arrival.is_withdrawn:
            _log.info("A question was deleted before it was taken")
        elif refusal is not None:
            await self._say_why(message, refusal, is_addressed=is_addressed)

    async def _take_in(
        self, message: discord.Message, bot: Bot, arrival: Arrival, *, is_addressed: bool
    ) -> None:
        """Take a message as a question, in the order in which all came and with its newest text."""
        if not is_addressed and not await self._is_free(message):
            return
        if not may_answer(message):
            _log.info("A question was left alone: no permission to answer there")
            return
        question = await self._questions.of(message, bot, await self._newest_part(message))
        view = await self._make_answer(message.channel, message.id)
        await arrival.is_first.wait()
        while (edited := arrival.take_edit()) is not None:
            arrival.check()
            content = await self._questions.content_of(edited, bot)
            question = dataclasses.replace(question, content=content)
        question = await self._questions.begun(question, message.channel, bot)
        await self._chat.take(question, view, arrival)

    async def _say_why(self, message: discord.Message, refusal: Exception, *, is_addressed: bool) -> None:
        """Say why a question is not taken, unless that would be too much."""
        self._on_refusal(refusal)
        if isinstance(refusal, RefusalError):
            # Where every message is answered, who may not ask may still talk to others.
            is_quiet = not is_addressed and isinstance(refusal, (BlockedError, NotHereError))
            if is_quiet or not self._refusal_pace.may_tell(message.author.id, _guild_id(message), refusal):
                return
        elif not is_expected(refusal):
            _log.error("A question could not be taken", exc_info=refusal)
        await self._refuse(message, sentence_for(refusal))

    async def _is_free(self, message: discord.Message) -> bool:
        """Tell whether every message is answered where this one is: a free channel, or a thread of ours."""
        if not self._sees_all or message.guild is None or message.mentions:
            return False
        channel = message.channel
        parent_id = channel.parent_id if isinstance(channel, discord.Thread) else channel.id
        try:
            free = (await self._servers.config(message.guild.id)).free_channels
            if channel.id in free or parent_id in free:
                return True
            return isinstance(channel, discord.Thread) and await self._chat.is_our_thread(channel.id)
        except StorageError as error:
            _log.error("It could not be told whether to answer: %s", error)
            return False

    async def _newest_part(self, message: discord.Message) -> int | None:
        """Return the message replied to if it shows the newest answer: all that is said follows that."""
        replied_id = None if message.reference is None else message.reference.message_id
        if replied_id is None:
            return None
        ref = ref_of(message.channel.id, message.channel, _guild_id(message))
        return replied_id if await self._chat.steering.is_newest(ref, replied_id) else None

    async def _refuse(self, message: discord.Message, sentence: str) -> None:
        reference = message.to_reference(fail_if_not_exists=False)
        try:
            text = render(sentence, await self._locales.of(message.guild))
            await message.channel.send(text, reference=reference, allowed_mentions=SILENT)
        except DISCORD_FAILURES as error:
            _log.warning("A refusal could not be sent: %s", type(error).__name__)


def _guild_id(message: discord.Message) -> int | None:
    return None if message.guild is None else message.guild.id
