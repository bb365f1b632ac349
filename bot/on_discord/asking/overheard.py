"""What is for us without a word to us: where every message is answered, and meant for nobody else.

Knows nothing of messages that mention us or reply to us.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable

import discord

from bot.conversation.mentions import Bot, Incoming, is_for_anybody
from bot.conversation.service import ChatService
from bot.servers.rates import loop_seconds
from bot.servers.servers import Servers
from storage.errors import StorageError

_log = logging.getLogger(__name__)

PRESENT_S = 1800.0
"""For so long after a message its author counts as present."""
MAX_PRESENT = 20
"""People of a channel whose names are known."""
MAX_CHANNELS = 1000


class Overheard:
    """Tells which messages are answered though they do not speak to us."""

    def __init__(self, chat: ChatService, servers: Servers, *, sees_all: bool) -> None:
        """`sees_all`: whether we get messages that do not mention us."""
        self._chat = chat
        self._servers = servers
        self._sees_all = sees_all
        self._present: OrderedDict[int, OrderedDict[int, tuple[str, float]]] = OrderedDict()
        """By channel and person, the name and when it was seen last."""

    async def is_for_us(self, message: discord.Message, incoming: Incoming, bot: Bot) -> bool:
        """Tell whether a message that does not speak to us is answered. Never raises."""
        if not self._sees_all or not await self._is_free(message):
            return False
        author_id = incoming.author_id
        self._note(message.channel.id, author_id, message.author.display_name)
        return is_for_anybody(incoming, bot, self._others(message.channel.id, author_id))

    async def _is_free(self, message: discord.Message) -> bool:
        """Tell whether every message is answered where this one is: a free channel, or a thread of ours."""
        channel, guild = message.channel, message.guild
        if guild is None:
            return False
        parent_id = channel.parent_id if isinstance(channel, discord.Thread) else channel.id
        try:
            free = (await self._servers.config(guild.id)).free_channels
            if channel.id in free or parent_id in free:
                return True
            if not isinstance(channel, discord.Thread):
                return False
            return channel.owner_id == guild.me.id or await self._chat.is_our_thread(channel.id)
        except StorageError as error:
            _log.error("It could not be told whether to answer: %s", error)
            return False

    def _note(self, channel_id: int, author_id: int, name: str) -> None:
        people = self._present.setdefault(channel_id, OrderedDict())
        people[author_id] = name, loop_seconds()
        people.move_to_end(author_id)
        self._present.move_to_end(channel_id)
        if len(people) > MAX_PRESENT:
            people.popitem(last=False)
        if len(self._present) > MAX_CHANNELS:
            self._present.popitem(last=False)

    def _others(self, channel_id: int, author_id: int) -> Iterable[str]:
        people = self._present[channel_id]
        since_s = loop_seconds() - PRESENT_S
        return [name for one, (name, at_s) in people.items() if one != author_id and at_s >= since_s]
