"""What people say in a server's channels besides, as far as questions need it: from memory, else by asking.

A channel is known from its first question on: Discord is asked once for what was said before, and events tell
of all that follows, until the connection or a permission is lost. Nothing of it is stored. Knows nothing of
whose words may be heard and of what the model is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import discord

from bot.conversation.mentions import Bot, is_for_us, is_from_a_person
from bot.conversation.talk import MAX_AGE, MAX_CHARS, Heard, Moment
from bot.on_discord.hearing.message_text import text_of
from bot.on_discord.interactions import DISCORD_FAILURES
from bot.on_discord.origins import incoming_of
from bot.servers.rates import loop_seconds
from bot.servers.servers import Servers
from bot.tasks import Tasks
from storage.errors import StorageError

_log = logging.getLogger(__name__)

NUM_LOOKED_AT = 50
"""Messages before a question, whoever wrote them."""
NUM_FETCHED = 100
"""As many as Discord gives at once."""
NUM_NEWEST = 16
"""Messages of a channel that are kept whole."""
MAX_KEPT = 120
"""Of a channel."""
MAX_CHANNELS = 2000
"""Known at a time, threads that were opened for questions among them."""
MAX_PAST = 50
"""Questions whose answers are made long after them."""
FETCH_TIMEOUT_S = 5.0
PATIENCE_S = 600.0
"""How long Discord is not asked again about a channel where it did not say."""
_TIME_SHIFT = 22
"""Ids of Discord hold milliseconds above so many bits."""
_LATE = timedelta(minutes=10)
"""So long after a question what was said before it may lie behind what is newest."""


@dataclass(eq=False, slots=True)
class _Channel:
    """What is known of one channel: its newest messages, in order; None for what is not heard."""

    guild_id: int
    parent_id: int | None = None
    """Of a thread that we opened for a question."""
    messages: dict[int, Heard | None] = field(default_factory=dict)
    known_from: int | None = None
    """0 is from its beginning; None is not known yet."""
    fetch: asyncio.Task[None] | None = None
    asks_again_s: float = 0.0
    gone: set[int] = field(default_factory=set)
    """What was deleted while Discord was asked."""
    newest: deque[discord.Message] = field(default_factory=lambda: deque(maxlen=NUM_NEWEST))
    """In order."""

    def put(self, message_id: int, heard: Heard | None) -> None:
        """Keep a new message, and let go of those that are too old, or too many."""
        self.messages[message_id] = heard
        too_old = message_id - (int(MAX_AGE.total_seconds() * 1000) << _TIME_SHIFT)
        while (oldest := next(iter(self.messages))) < too_old or len(self.messages) > MAX_KEPT:
            del self.messages[oldest]
            if self.known_from is not None:
                self.known_from = max(self.known_from, oldest + 1)

    def keep(self, newest: Sequence[discord.Message]) -> None:
        """Keep these messages whole, and no others."""
        if len(newest) != len(self.newest):
            self.newest.clear()
            self.newest.extend(newest)

    def unhear(self, message_id: int) -> None:
        """Hear a message no more."""
        if self.fetch is not None:
            self.gone.add(message_id)
        if message_id in self.messages:
            self.messages[message_id] = None

    def has_newest(self, since: datetime) -> bool:
        """Tell whether all that was said since then is among the newest, or more than these."""
        is_full = len(self.newest) == NUM_NEWEST
        first_id = discord.utils.time_snowflake(since)
        return self.known_from is not None and (is_full or self.known_from <= first_id)

    def knows(self, moment: Moment) -> bool:
        """Tell whether nothing before a moment that counts is missing."""
        if self.known_from is None:
            return False
        num_before = sum(one < moment.discord_id for one in self.messages)
        first_id = discord.utils.time_snowflake(moment.at - MAX_AGE)
        return num_before >= NUM_LOOKED_AT or self.known_from <= first_id


Place = discord.TextChannel | discord.VoiceChannel | discord.StageChannel | discord.Thread
PLACES = (discord.TextChannel, discord.VoiceChannel, discord.StageChannel, discord.Thread)


class ChannelTalk:
    """Listens in the channels of servers that want it. `sees_all`: whether we get all messages' content."""

    def __init__(self, client: discord.Client, servers: Servers, *, sees_all: bool) -> None:
        self._client = client
        self._servers = servers
        self.sees_all = sees_all
        self._channels: OrderedDict[int, _Channel] = OrderedDict()
        self._past: OrderedDict[int, _Channel] = OrderedDict()
        """By question, what was said before it where that is not among the newest."""
        self._tasks = Tasks()

    async def listens(self, guild_id: int | None) -> bool:
        """Tell whether a server wants it, and Discord lets us. Never raises."""
        if guild_id is None or not self.sees_all:
            return False
        try:
            return (await self._servers.config(guild_id)).reads_along
        except StorageError:
            return False

    async def before(self, moment: Moment) -> Sequence[Heard]:
        """Return the newest messages before a moment, oldest first. Never raises."""
        place = self._place_of(moment) if await self.listens(moment.guild_id) else None
        if place is None:
            return ()
        channel = self._known(place.id, moment.guild_id)
        may_look = place.permissions_for(place.guild.me).read_message_history
        if may_look and not channel.knows(moment):
            is_late = channel.known_from is not None or discord.utils.utcnow() - moment.at > _LATE
            if is_late:
                channel = _entry(self._past, moment.discord_id, moment.guild_id, MAX_PAST)
            await self._ask(channel, place, moment.discord_id if is_late else None)
        newest = sorted(one for one in channel.messages if one < moment.discord_id)[-NUM_LOOKED_AT:]
        return [heard for one in newest if (heard := channel.messages[one]) is not None]

    async def right_before(self, message: discord.Message, within: timedelta) -> list[discord.Message]:
        """Return the few messages before one, the newest first. Raises what `DISCORD_FAILURES` has."""
        since = message.created_at - within
        if message.guild is not None and await self.listens(message.guild.id):
            moment = Moment(message.guild.id, message.channel.id, message.id, message.created_at)
            await self.before(moment)
            if (channel := self._channels.get(message.channel.id)) is not None and channel.has_newest(since):
                return [one for one in reversed(channel.newest) if one.id < message.id]
        return [one async for one in message.channel.history(limit=NUM_NEWEST, before=message)]

    def said(self, message: discord.Message, bot: Bot) -> None:
        """Learn of a new message, and let go of the channel where the server does not want it any more."""
        channel = self._channels.get(message.channel.id)
        if channel is None or message.guild is None:
            return
        if not self._servers.known(message.guild.id).reads_along:
            del self._channels[message.channel.id]
            return
        channel.put(message.id, heard_in(message, bot))
        channel.newest.append(message)

    def edited(self, message: discord.Message, bot: Bot) -> bool:
        """Learn what a message says now; return whether it was heard."""
        was_heard = False
        for known in self._with(message.channel.id):
            for at, one in enumerate(known.newest):
                if one.id == message.id:
                    known.newest[at] = message
            if known.messages.get(message.id) is not None:
                known.messages[message.id] = heard_in(message, bot)
                was_heard = True
        return was_heard

    def deleted(self, channel_id: int, message_id: int) -> bool:
        """Learn that a message is gone; return whether it was heard."""
        was_heard = False
        for known in self._with(channel_id):
            was_heard |= known.messages.get(message_id) is not None
            known.keep([one for one in known.newest if one.id != message_id])
            known.unhear(message_id)
        return was_heard

    def taken(self, channel_id: int, discord_id: int) -> None:
        """See `Ears.taken`."""
        for known in self._with(channel_id):
            known.unhear(discord_id)

    def forget(self, user_id: int) -> None:
        """See `Ears.forget`."""
        for known in (*self._channels.values(), *self._past.values()):
            known.keep([one for one in known.newest if one.author.id != user_id])
            for message_id, heard in known.messages.items():
                if heard is not None and heard.author_id == user_id:
                    known.messages[message_id] = None

    def begun(self, thread: discord.Thread) -> None:
        """Learn that a thread is new: nothing was said there before."""
        if self._servers.known(thread.guild.id).reads_along:
            channel = self._known(thread.id, thread.guild.id)
            channel.known_from, channel.parent_id = 0, thread.parent_id

    def lose(self, guild_id: int | None = None) -> None:
        """Forget what is known of a server, or of all: something may have been missed."""
        for known in (self._channels, self._past):
            for key in [key for key, one in known.items() if guild_id in (None, one.guild_id)]:
                del known[key]

    async def close(self) -> None:
        """Ask for nothing more."""
        await self._tasks.close()

    def _with(self, channel_id: int) -> Iterable[_Channel]:
        """Return all that may know a message of a channel."""
        channel = self._channels.get(channel_id)
        return (*([] if channel is None else [channel]), *self._past.values())

    def _known(self, channel_id: int, guild_id: int) -> _Channel:
        """Return what is known of a channel, which may be nothing yet."""
        return _entry(self._channels, channel_id, guild_id, MAX_CHANNELS)

    def _place_of(self, moment: Moment) -> Place | None:
        place = self._client.get_channel(moment.channel_id)
        if moment.channel_id == moment.discord_id:  # a thread was opened for it, from where it was asked
            known = self._channels.get(moment.channel_id)
            parent_id = place.parent_id if isinstance(place, discord.Thread) else known and known.parent_id
            place = self._client.get_channel(parent_id or 0)
        return place if isinstance(place, PLACES) else None

    async def _ask(self, channel: _Channel, place: Place, before_id: int | None) -> None:
        """Have Discord say what was said before; for all who want to know that at the same time, once."""
        if channel.fetch is None and channel.known_from is None and loop_seconds() >= channel.asks_again_s:
            channel.asks_again_s = loop_seconds() + PATIENCE_S
            channel.fetch = self._tasks.start(_fetch(channel, place, before_id), "looking what was said")
        if channel.fetch is not None:
            await asyncio.wait({channel.fetch}, timeout=FETCH_TIMEOUT_S)


def _entry(known: OrderedDict[int, _Channel], key: int, guild_id: int, max_kept: int) -> _Channel:
    """Return an entry, made if there is none, and let go of the one that was asked for longest ago."""
    channel = known.setdefault(key, _Channel(guild_id))
    known.move_to_end(key)
    if len(known) > max_kept:
        known.popitem(last=False)
    return channel


async def _fetch(channel: _Channel, place: Place, before_id: int | None) -> None:
    """Ask Discord. Never raises."""
    us, role = place.guild.me, place.guild.self_role
    try:
        before = None if before_id is None else discord.Object(before_id)
        found = [message async for message in place.history(limit=NUM_FETCHED, before=before)]
        bot = Bot(us.id, us.display_name, None if role is None else role.id)
        for message in found:
            is_gone = message.id in channel.gone
            channel.messages.setdefault(message.id, None if is_gone else heard_in(message, bot))
        channel.messages = dict(sorted(channel.messages.items()))
        kept = [one for one in found if one.id not in channel.gone and before is None]
        both = {one.id: one for one in (*kept, *channel.newest)}
        channel.newest.clear()
        channel.newest.extend(both[message_id] for message_id in sorted(both))
        channel.known_from = 0 if len(found) < NUM_FETCHED else found[-1].id
    except DISCORD_FAILURES as error:
        _log.info("What was said before a question could not be looked up: %s", type(error).__name__)
    finally:
        channel.fetch = None
        channel.gone.clear()


def heard_in(message: discord.Message, bot: Bot, *, to_us_too: bool = False) -> Heard | None:
    """Return what a person said to others in a message; None where it was said by none, or to us."""
    incoming = incoming_of(message)
    if not is_from_a_person(incoming) or message.author.id == bot.user_id:
        return None
    if not to_us_too and is_for_us(incoming, bot):
        return None
    content = text_of(message, bot)[: MAX_CHARS + 1]
    if not content.strip():
        return None
    author = message.author
    return Heard(message.id, message.channel.id, author.id, author.display_name, content, message.created_at)
