"""From a Discord message to a question: what it says, and what it refers to.

Knows nothing of when a message is for us.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

import discord

from bot.conversation.jobs import Question
from bot.conversation.mentions import Bot
from bot.conversation.service import ChatService
from bot.errors import AttachmentError
from bot.language.phrases import phrase
from bot.on_discord.hearing.hearing import Hearing, Listener, Reference, Told, head_of
from bot.on_discord.hearing.message_text import told
from bot.on_discord.origins import origin_of_message, ref_of
from bot.servers.rates import loop_seconds
from storage.conversations import ConversationRef

FORWARD_TIME_S = 60.0
MAX_FORWARDS = 500
SHARE_OF_DOCUMENTS = 0.75
"""Of the room that a question has, for the documents of a message."""


class Questions:
    """Makes questions of messages."""

    def __init__(self, hearing: Hearing, chat: ChatService) -> None:
        self._hearing = hearing
        self._chat = chat
        self._forwards = Forwards()

    async def of(
        self,
        message: discord.Message,
        bot: Bot,
        newest_part_id: int | None = None,
        written: discord.Message | None = None,
    ) -> Question:
        """Return what a message asks. Raises `AttachmentError`.

        A reply quotes what it replies to, but not the newest answer (shown by `newest_part_id`): it is the
        last thing said anyway. `written`: what its author wrote, if another one posts it for them.
        """
        written = written or message
        origin = origin_of_message(written)
        if is_costly(message):
            await self._chat.precheck(origin)
        guild_id = None if message.guild is None else message.guild.id
        ref = ref_of(message.channel.id, message.channel, guild_id)
        listener = self.listen(ref, bot)
        heard = await _hear(listener, message)
        is_newest = message.reference is not None and message.reference.message_id == newest_part_id
        references = [Reference() if is_newest else await listener.replied(message)]
        if not heard.text and references[0].quote is not None and not references[0].is_readable:
            raise AttachmentError((*references[0].notes, phrase("answer.quote_empty"))[0])
        references += await listener.linked(message.content, written.author, message.channel)
        if not heard.is_readable and heard.notes and not any(one.is_readable for one in references):
            raise AttachmentError(heard.notes[0])
        question = Question(
            conversation=ref,
            discord_id=message.id,
            author_id=message.author.id,
            author_name=message.author.display_name,
            content=heard.text,
            created_at=message.created_at,
            origin=origin,
            starter_id=message.channel.id if isinstance(message.channel, discord.Thread) else None,
            notes=heard.notes,
        )
        return referring(question, references)

    async def content_of(self, message: discord.Message, bot: Bot) -> str:
        """Return what an edited message says now. Raises `AttachmentError`."""
        guild_id = None if message.guild is None else message.guild.id
        ref = ref_of(message.channel.id, message.channel, guild_id)
        return (await _hear(self.listen(ref, bot), message)).text

    def listen(self, ref: ConversationRef, bot: Bot) -> Listener:
        """Return what hears the messages of a question in this conversation."""

        async def fit(text: str, num_files: int) -> int:
            return await self._chat.fitting(ref, text, SHARE_OF_DOCUMENTS / num_files)

        return self._hearing.listen(bot, fit)

    def notice(self, message: discord.Message) -> None:
        """Take note of a message that does not speak to us: what it forwards may be asked about next."""
        self._forwards.notice(message)

    async def begun(self, question: Question, channel: object, bot: Bot) -> Question:
        """Return a question with what it goes on from: what its author just forwarded, or a thread's start.

        Discord sends the words that somebody writes while forwarding as a message of their own.
        """
        forward = self._forwards.take(question.conversation.channel_id, question.author_id)
        if forward is not None and not await self._is_known(forward):
            question = referring(question, [await self.listen(question.conversation, bot).quote(forward)])
        return await self._begun_thread(question, channel, bot)

    async def _is_known(self, message: discord.Message) -> bool:
        return await self._chat.conversations.find_by_discord_id(message.id) is not None

    async def _begun_thread(self, question: Question, channel: object, bot: Bot) -> Question:
        if not isinstance(channel, discord.Thread) or question.discord_id == channel.id:
            return question
        known_id = await self._chat.conversations.find(question.conversation)
        has_begun = known_id is not None and await self._chat.conversations.recent(known_id, 1)
        if has_begun or await self._chat.is_our_thread(channel.id):
            return question
        starter = await self.listen(question.conversation, bot).starter(channel)
        if starter.quote is not None and any(q.discord_id == channel.id for q in question.quotes):
            return question
        return referring(question, [starter])


async def _hear(listener: Listener, message: discord.Message) -> Told:
    """Return what a message of a question says. Raises `AttachmentError`."""
    heard = await listener.hear(message)
    if heard.problems:
        raise AttachmentError(heard.problems[0])
    channel = message.channel
    if isinstance(channel, discord.Thread) and message.id == channel.id and heard.text:
        return dataclasses.replace(heard, text=told([head_of(channel), heard.text]))
    return heard


def is_costly(message: discord.Message) -> bool:
    """Tell whether more than words must be looked at to know what a message asks."""
    return bool(
        message.attachments
        or message.message_snapshots
        or message.reference
        or "/channels/" in message.content
    )


class Forwards:
    """What people forwarded of late and did not ask us about; kept in memory, for a minute."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], tuple[float, discord.Message]] = OrderedDict()

    def notice(self, message: discord.Message) -> None:
        """Keep a forward until its author says more, or for too long."""
        key = message.channel.id, message.author.id
        self._kept.pop(key, None)
        if message.message_snapshots and message.guild is not None:
            self._kept[key] = loop_seconds(), message
        while self._kept and (len(self._kept) > MAX_FORWARDS or _is_old(next(iter(self._kept.values()))[0])):
            self._kept.popitem(last=False)

    def take(self, channel_id: int, author_id: int) -> discord.Message | None:
        """Return what a person forwarded right before, once."""
        kept = self._kept.pop((channel_id, author_id), None)
        return None if kept is None or _is_old(kept[0]) else kept[1]


def _is_old(noticed_s: float) -> bool:
    return loop_seconds() - noticed_s > FORWARD_TIME_S


def referring(question: Question, references: list[Reference]) -> Question:
    """Return a question that refers to messages, the first one first, before those it refers to already."""
    quotes = tuple(one.quote for one in references if one.quote is not None)
    notes = (*question.notes, *(note for one in references for note in one.notes))
    return dataclasses.replace(
        question, quotes=(*quotes, *question.quotes), notes=tuple(dict.fromkeys(notes))
    )
