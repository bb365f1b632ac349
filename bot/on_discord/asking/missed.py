"""Questions that were asked while no process attended to a shard: after the end of one, before the next.

Discord tells a new session nothing of what it missed. It does tell of each channel which message is its
newest, so only channels where something was said meanwhile are looked at. Knows nothing of how a question is
taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import discord

from bot.conversation.mentions import Bot, is_for_us
from bot.on_discord.interactions import DISCORD_FAILURES
from bot.on_discord.origins import bot_of, incoming_of
from storage.shards import Shards, shard_of

_log = logging.getLogger(__name__)

MAX_AGE = timedelta(minutes=10)
"""Nobody waits for longer for an answer."""
MARGIN = timedelta(seconds=15)
"""What came so shortly before the end may not have been taken any more."""
MAX_CHANNELS = 200
MAX_MESSAGES = 100
"""Of a channel."""
NUM_AT_ONCE = 4

Take = Callable[[discord.Message, Bot], Awaitable[None]]
Place = discord.TextChannel | discord.VoiceChannel | discord.StageChannel | discord.Thread


class Missed:
    """Takes what was missed. attended_at: see `Holding`; where it is not known nothing was missed."""

    def __init__(
        self, client: discord.Client, shards: Shards, attended_at: Mapping[int, int], take: Take
    ) -> None:
        self.is_done = not any(attended_at.values())
        """Whether all that was said up to now has come to us."""
        self._client = client
        self._shards = shards
        self._attended_at = attended_at
        self._take = take

    async def look(self) -> None:
        """Look for it, once. Never raises."""
        if self.is_done:
            return
        places = sorted(self._places(), key=lambda place: place.last_message_id or 0, reverse=True)
        if len(places) > MAX_CHANNELS:
            _log.warning("Too much was missed: %d channels are left alone", len(places) - MAX_CHANNELS)
        doors = asyncio.Semaphore(NUM_AT_ONCE)
        taken = await asyncio.gather(*(self._look_in(place, doors) for place in places[:MAX_CHANNELS]))
        if num := sum(taken):
            _log.info("%d questions that were asked meanwhile are taken", num)
        self.is_done = True

    def _places(self) -> Iterator[Place]:
        """Give the channels where something was said meanwhile and that we may read."""
        for guild in self._client.guilds:
            since = self._since(guild.id)
            if since is None:
                continue
            first_id = discord.utils.time_snowflake(since)
            places: tuple[Place, ...] = (
                *guild.text_channels, *guild.voice_channels, *guild.stage_channels, *guild.threads
            )  # fmt: skip
            for place in places:
                if (place.last_message_id or 0) >= first_id:
                    allowed = place.permissions_for(guild.me)
                    if allowed.view_channel and allowed.read_message_history:
                        yield place

    def _since(self, guild_id: int) -> datetime | None:
        attended_at = self._attended_at.get(shard_of(guild_id, self._shards.count), 0)
        if not attended_at:
            return None
        since = datetime.fromtimestamp(attended_at / 1000, UTC) - MARGIN
        return max(since, datetime.now(UTC) - MAX_AGE)

    async def _look_in(self, place: Place, doors: asyncio.Semaphore) -> int:
        """Take what was missed in one channel; return how many questions that may be."""
        since, bot = self._since(place.guild.id), self._client.user
        if since is None or bot is None:
            return 0
        us = bot_of(bot, place.guild)
        async with doors:
            try:
                said = [
                    one async for one in place.history(limit=MAX_MESSAGES, after=since, oldest_first=True)
                ]
                answered = {
                    one.reference.message_id for one in said if one.author.id == bot.id and one.reference
                }
                missed = [one for one in said if one.id not in answered and is_for_us(incoming_of(one), us)]
                for message in missed:
                    await self._recognise(message)
            except DISCORD_FAILURES as error:
                _log.info("What was missed in a channel could not be read: %s", type(error).__name__)
                return 0
        for message in missed:
            await self._take(message, us)
        return len(missed)

    async def _recognise(self, message: discord.Message) -> None:
        """Learn which roles the author has, which Discord does not tell with a message of the past."""
        if message.guild is not None and isinstance(message.author, discord.User):
            with suppress(discord.NotFound):
                message.author = await message.guild.fetch_member(message.author.id)
