"""What a message says with all that belongs to it: its files, and the messages that it refers to.

Owns what is fetched for that, and its bounds. Knows nothing of whether a message is for us.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import discord

from bot.conversation.mentions import Bot, label
from bot.errors import AttachmentError
from bot.language.phrases import phrase
from bot.on_discord.hearing.files import Files, Fit, OpenedFile, why_not_readable
from bot.on_discord.hearing.links import MAX_LINKS, MessageLink, Readers, channel_to_open, links_in
from bot.on_discord.hearing.message_text import UNSEEN, parts_of, text_of, told
from bot.on_discord.interactions import DISCORD_FAILURES
from storage.conversations import Quote

_log = logging.getLogger(__name__)

MAX_QUOTE_CHARS = 2000
"""Of a message that is referred to, its files not counted."""
MAX_TITLE_CHARS = 100
FETCH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Told:
    """What the model is told of a message.

    notes: what people are told below the answer: what was cut, what cannot be seen or heard. problems: why
    files could not be read. is_readable: whether there is more than what cannot be read. file_chars: how much
    of the text is from files.
    """

    text: str
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    is_readable: bool = False
    file_chars: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """A message that is referred to, if anything can be told of it, and what people are told about it."""

    quote: Quote | None = None
    notes: tuple[str, ...] = ()
    is_readable: bool = False


class Hearing:
    """Listens for questions."""

    def __init__(self, client: discord.Client, *, sees_all: bool) -> None:
        """`sees_all`: whether Discord shows us the content of messages that do not mention us."""
        self._client = client
        self._sees_all = sees_all
        self._files = Files()

    def listen(self, bot: Bot, fit: Fit) -> Listener:
        """Return what hears the messages of one question; `fit` tells how much room it has for documents."""
        return Listener(self._client, self._files, bot, fit, sees_all=self._sees_all)


class Listener:
    """Turns messages into what the model is told of them in one question."""

    def __init__(self, client: discord.Client, files: Files, bot: Bot, fit: Fit, *, sees_all: bool) -> None:
        self._client = client
        self._files = files
        self._bot = bot
        self._fit = fit
        self._sees_all = sees_all

    async def hear(self, message: discord.Message) -> Told:
        """Return all that a message says, files opened. Raises `AttachmentError` if there are too many."""
        texts: list[str] = []
        files: list[OpenedFile] = []
        parts = parts_of(message, self._bot)
        for part in parts:
            opened = await self._files.open(part.attachments, self._fit)
            texts.append(part.told(one.block for one in opened))
            files += opened
        blocks = [block for part in parts for block in part.blocks if block.strip()]
        files += [OpenedFile(UNSEEN, note=phrase("files.image")) for block in blocks if block == UNSEEN]
        return _told(told(texts), files, has_words=any(block != UNSEEN for block in blocks))

    async def read(self, attachments: Sequence[discord.Attachment]) -> Told:
        """Return what is in files. Raises `AttachmentError` if there are too many."""
        opened = await self._files.open(attachments, self._fit)
        return _told(told(one.block for one in opened), opened, has_words=False)

    async def quote(self, message: discord.Message, head: str = "") -> Reference:
        """Return a message as a quote, with a line in front of it; our own are from nobody by name."""
        message = await _pointed_to(message)
        try:
            heard = await self.hear(message)
        except AttachmentError as error:
            heard = Told(text_of(message, self._bot), (error.sentence,), is_readable=True)
        notes = [*heard.notes, *heard.problems]
        if not heard.text:
            notes.append(self._why_empty(message))
            if not head:
                return Reference(notes=tuple(notes))
        text, limit = heard.text, MAX_QUOTE_CHARS + heard.file_chars
        if len(text) > limit:
            text = f"{text[:limit].rstrip()}…"
            notes.append(phrase("answer.quote_cut"))
        name = "" if message.author.id == self._bot.user_id else label(message.author.display_name)
        quote = Quote(name, told([head, text]), message.id, message.author.id)
        return Reference(quote, tuple(notes), heard.is_readable or bool(head))

    async def replied(self, message: discord.Message) -> Reference:
        """Return the message that this one replies to."""
        reference = message.reference
        if message.type is not discord.MessageType.reply or reference is None or reference.message_id is None:
            return Reference()
        replied = reference.resolved
        if replied is None:
            replied = await _fetched(message.channel, reference.message_id)
        if isinstance(replied, discord.Message):
            return await self.quote(replied)
        return Reference(notes=(phrase("answer.quote_gone"),))

    async def starter(self, thread: discord.Thread) -> Reference:
        """Return what a thread is about: its title, its tags, and the message that it was started with."""
        place = thread if isinstance(thread.parent, discord.ForumChannel) else thread.parent
        message = None if thread.is_private() else await _fetched(place, thread.id)
        return Reference() if message is None else await self.quote(message, head_of(thread))

    async def linked(
        self, content: str, asker: discord.User | discord.Member, place: object | None
    ) -> list[Reference]:
        """Return the messages that links lead to, as far as all who read the answer in `place` may read them.

        `place` is None where only the one who asks reads it.
        """
        links = links_in(content)
        found = [await self._opened(link, asker, place) for link in links[:MAX_LINKS]]
        if len(links) > MAX_LINKS:
            found.append(Reference(notes=(phrase("links.too_many", limit=MAX_LINKS),)))
        return found

    async def _opened(
        self, link: MessageLink, asker: discord.User | discord.Member, place: object | None
    ) -> Reference:
        guild = None if link.guild_id is None else self._client.get_guild(link.guild_id)
        person: discord.User | discord.Member | None = asker
        if guild is not None and getattr(asker, "guild", None) != guild:
            is_alone = place is None or isinstance(place, discord.DMChannel)
            person = await _member(guild, asker.id) if is_alone else None
        channel = None if person is None else channel_to_open(link, Readers(person, guild, place))
        message = None if channel is None else await _fetched(channel, link.message_id)
        if message is None:
            return Reference(notes=(phrase("links.not_opened"),))
        return await self.quote(message)

    def _why_empty(self, message: discord.Message) -> str:
        """Say why there is nothing to be told of a message: often Discord shows us nothing of it."""
        is_shown = self._sees_all or message.guild is None or message.author.id == self._bot.user_id
        is_written = message.type in (discord.MessageType.default, discord.MessageType.reply)
        mentions_us = any(user.id == self._bot.user_id for user in message.mentions)
        return phrase(
            "answer.quote_empty" if is_shown or mentions_us or not is_written else "answer.quote_unseen"
        )


def head_of(thread: discord.Thread) -> str:
    """Return a line that says what a thread is called."""
    kind = "Forum post" if isinstance(thread.parent, discord.ForumChannel) else "Thread"
    tags = ", ".join(label(tag.name) for tag in thread.applied_tags)
    return f"{kind}: {label(thread.name, MAX_TITLE_CHARS)}" + (f" (tags: {tags})" if tags else "")


def why_unreadable(message: discord.Message, bot: Bot) -> str | None:
    """Return why there is surely nothing to read in a message, as far as that can be told without opening."""
    parts = parts_of(message, bot)
    blocks = [block for part in parts for block in part.blocks if block.strip()]
    if any(block != UNSEEN for block in blocks):
        return None
    reasons: list[str | None] = [phrase("files.image") for _ in blocks]
    reasons += [why_not_readable(one) for part in parts for one in part.attachments]
    return (reasons or [phrase("ask.nothing_there")])[0] if all(reasons) else None


def _told(text: str, files: Sequence[OpenedFile], *, has_words: bool) -> Told:
    return Told(
        text,
        tuple(dict.fromkeys(one.note for one in files if one.note)),
        tuple(one.problem for one in files if one.problem),
        is_readable=has_words or any(one.is_read for one in files),
        file_chars=sum(len(one.block) for one in files if one.is_read),
    )


async def _pointed_to(message: discord.Message) -> discord.Message:
    """Return the message of a channel that the first one in a thread only points to; else the message."""
    reference, channel = message.reference, message.channel
    if message.type is not discord.MessageType.thread_starter_message or reference is None:
        return message
    if isinstance(reference.resolved, discord.Message):
        return reference.resolved
    if reference.message_id is None or not isinstance(channel, discord.Thread):
        return message
    return await _fetched(channel.parent, reference.message_id) or message


async def _fetched(channel: object, message_id: int) -> discord.Message | None:
    """Return a message of a channel, None if we do not get it."""
    if not isinstance(channel, discord.abc.Messageable):
        return None
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            return await channel.fetch_message(message_id)
    except DISCORD_FAILURES as error:
        _log.info("A message that is referred to could not be fetched: %s", type(error).__name__)
        return None


async def _member(guild: discord.Guild, user_id: int) -> discord.Member | None:
    """Return a person as a member of a server, as Discord knows them now."""
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            return await guild.fetch_member(user_id)
    except DISCORD_FAILURES:
        return None
