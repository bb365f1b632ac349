"""A thread for each question, in the channels where a server wants that: when, and what it is called.

Where none can be opened the question is answered in the channel. Knows nothing of what is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import re
import unicodedata
from collections import OrderedDict

import discord

from bot.conversation.jobs import Question
from bot.conversation.mentions import label
from bot.conversation.service import ChatService
from bot.conversation.views import AnswerView
from bot.language.phrases import phrase, render
from bot.on_discord.answers.discord_answer import MakeAnswer
from bot.on_discord.asking.channel_talk import ChannelTalk
from bot.on_discord.interactions import DISCORD_FAILURES
from bot.on_discord.origins import Locales
from bot.servers.servers import Servers
from storage.conversations import ConversationKind, ConversationRef

_log = logging.getLogger(__name__)

MAX_TITLE_CHARS = 80
"""Discord shows about as many, and takes 100."""
MAX_REMEMBERED = 500
"""Threads that what their asker adds may join."""
OPEN_TIMEOUT_S = 10.0
KNOWN_TIMEOUT_S = 1.0
"""For so long the event is waited for by which Discord tells of a new thread."""
_EXISTS = 160004
_TOKEN = re.compile(r"<(?:@[!&]?|#|a?:\w+:|/[^:>]+:|t:-?|id:)[^<>\s]{1,40}>|@(?:everyone|here)\b")
_LINK = re.compile(r"\[([^\[\]]+)\]\([^()\s]*\)")
_ADDRESS = re.compile(r"\S*(?:://|\b[\w-]+\.\w+/)\S*")
_LINE_MARK = re.compile(r"^[ \t]*(?:#{1,3} |-# |>{1,3} |[-*] |\d+\. |`{3}\w*)", re.MULTILINE)
_MARK = re.compile(r"`+|\|\||~~|(?<!\w)[*_]+|[*_]+(?!\w)")
_LOOSE = re.compile(r"[\s,;:]+(?=[?!.]+\Z)")
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))


def title_of(text: str) -> str:
    """Return what a thread for a question is called: its words alone, on one line; empty where none are left.

    Without mentions, links and marks of Markdown. Pure.
    """
    plain = _ADDRESS.sub(" ", _LINK.sub(r"\1", _TOKEN.sub(" ", text)))
    plain = _MARK.sub("", _LINE_MARK.sub("", plain))
    kept = "".join(c if unicodedata.category(c) not in _UNSEEN else " " for c in plain)
    title = _LOOSE.sub("", " ".join(kept.split())).strip(" ,:;-")
    if len(title) <= MAX_TITLE_CHARS:
        return title
    return f"{title[:MAX_TITLE_CHARS].rpartition(' ')[0] or title[:MAX_TITLE_CHARS]}…"


class QuestionThreads:
    """Opens threads."""

    def __init__(
        self,
        client: discord.Client,
        chat: ChatService,
        servers: Servers,
        locales: Locales,
        talk: ChannelTalk,
        make_answer: MakeAnswer,
        *,
        sees_all: bool,
    ) -> None:
        """`sees_all`: whether we get messages that do not mention us, as those in such a thread."""
        self._client = client
        self._chat = chat
        self._servers = servers
        self._locales = locales
        self._talk = talk
        self._make_answer = make_answer
        self._sees_all = sees_all
        self._newest: OrderedDict[tuple[int, int], discord.Thread] = OrderedDict()

    async def opens_in(self, channel: object) -> bool:
        """Tell whether a question in a channel gets a thread. Raises `StorageError`."""
        if not self._sees_all or not isinstance(channel, discord.TextChannel):
            return False
        wanted = (await self._servers.config(channel.guild.id)).thread_channels
        if not wanted & {channel.id, channel.category_id}:
            return False
        allowed = channel.permissions_for(channel.guild.me)
        return allowed.view_channel and allowed.create_public_threads and allowed.send_messages_in_threads

    async def settle(
        self, question: Question, view: AnswerView, *, channel: object, text: str
    ) -> tuple[Question, AnswerView]:
        """Return a question of a channel as one of a thread that is opened from it, or as it is.

        What its asker adds before the answer begins joins it there. text: what the thread is called by.
        Raises `StorageError`.
        """
        if not isinstance(channel, discord.TextChannel) or not await self.opens_in(channel):
            return question, view
        key = (channel.id, question.author_id)
        thread = self._newest.get(key)
        if thread is None or not self._chat.takes(thread.id, question.author_id):
            message = discord.PartialMessage(channel=channel, id=question.discord_id)
            thread = await self._opened(message, await self._title(channel, question, text))
        if thread is None:
            return question, view
        ref = ConversationRef(thread.id, ConversationKind.THREAD, channel.guild.id)
        if self._newest.get(key) is not thread:
            await self._chat.preferences.begin_like(ref, question.conversation)
            self._remember(key, thread)
        moved = dataclasses.replace(question, conversation=ref, starter_id=None)
        return moved, await self._make_answer(thread, None)

    def _remember(self, key: tuple[int, int], thread: discord.Thread) -> None:
        self._newest[key] = thread
        self._newest.move_to_end(key)
        if len(self._newest) > MAX_REMEMBERED:
            self._newest.popitem(last=False)

    async def _title(self, channel: discord.TextChannel, question: Question, text: str) -> str:
        untitled = phrase("threads.untitled", name=label(question.author_name))
        return title_of(text) or render(untitled, await self._locales.of(channel.guild))[:MAX_TITLE_CHARS]

    async def _opened(self, message: discord.PartialMessage, title: str) -> discord.Thread | None:
        """Open a thread; None where Discord does not let us."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                thread = await message.create_thread(name=title)
        except (*DISCORD_FAILURES, ValueError) as error:
            found = None if message.guild is None else message.guild.get_thread(message.id)
            if found is None or getattr(error, "code", 0) != _EXISTS:
                _log.info("A question is answered in its channel: no thread could be opened")
                return None
            return found
        self._talk.begun(thread)
        if thread.guild.get_thread(thread.id) is None:  # its name, and what is said in it, depend on that
            with contextlib.suppress(TimeoutError):
                await self._client.wait_for(
                    "thread_create", check=lambda one: one.id == thread.id, timeout=KNOWN_TIMEOUT_S
                )
        return thread

    async def question_deleted(self, guild_id: int | None, message_id: int) -> None:
        """Take the words of a question that was deleted from the name of its thread. Never raises."""
        guild = None if guild_id is None else self._client.get_guild(guild_id)
        thread = None if guild is None else guild.get_thread(message_id)
        if guild is None or thread is None or thread.owner_id != guild.me.id:
            return
        try:
            await thread.edit(name=render(phrase("threads.deleted"), await self._locales.of(guild)))
        except DISCORD_FAILURES as error:
            _log.info("A thread could not be given another name: %s", type(error).__name__)
