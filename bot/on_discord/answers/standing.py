"""What stands in a channel where answers are owed: messages of ours, from the first question on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import discord

from bot.delivery.board import Look
from bot.on_discord.answers.outboxes import buttons_below, text_of, translated
from bot.on_discord.origins import Channel, may_open
from bot.servers.server_config import ServerConfig
from storage.conversations import InterruptedAnswer

MAX_SEARCHED = 300
"""Messages of a channel, from the first question on, among which ours are looked for."""


@dataclass(slots=True)
class Standing:
    """A channel where answers are to be shown, and what is seen there from the first question on."""

    channel: Channel
    locale: str
    config: ServerConfig
    answers: Sequence[InterruptedAnswer]
    seen: dict[int, discord.Message] = field(default_factory=dict)
    """Our messages."""
    num_seen: int = 0
    """Everybody's; 0 where nobody looked."""

    def lacks(self, discord_id: int) -> bool:
        """Tell whether a message should have been seen and was not."""
        return 0 < self.num_seen < MAX_SEARCHED and discord_id not in self.seen

    def text_of(self, message: discord.Message) -> str:
        """Return what a message of ours says."""
        return text_of(message, as_embeds=self.config.uses_embeds)

    def says_plainly(self, message: discord.Message, texts: Sequence[str]) -> bool:
        """Tell whether a message says one of `texts` and has no buttons, as full parts of answers do."""
        return not message.components and self.text_of(message) in texts

    def can_move(self, one: InterruptedAnswer) -> bool:
        """Tell whether the messages of an answer may come again below what those above it still need.

        Not those that stood before the questions above were asked: they were made again where they stand.
        """
        above = (other.question_discord_id for other in self.answers if other.answer.id < one.answer.id)
        newest = max((question_id or 0 for question_id in above), default=0)
        return not one.answer.content.strip() or min(one.part_ids, default=0) > newest

    def looks(self, one: InterruptedAnswer) -> dict[int, Look]:
        """Return what the messages of an answer show, as far as it is known for sure."""
        looks = {}
        for part_id in one.part_ids:
            message = self.seen.get(part_id)
            if message is None or message.attachments or bool(message.embeds) != self.config.uses_embeds:
                continue
            buttons = buttons_below(message, one.answer.id, self.locale)
            if buttons is not None:
                looks[part_id] = Look(self.text_of(message), buttons)
        return looks


async def read_standing(
    channel: Channel,
    answers: Sequence[InterruptedAnswer],
    config: ServerConfig,
    locale: str,
    *,
    by: discord.ClientUser | None,
) -> Standing:
    """Look what we (`by`) have in a channel where these answers are owed. Raises `OutboxError`."""
    found = Standing(channel, locale, config, answers)
    firsts = (min(filter(None, (one.question_discord_id, *one.part_ids)), default=0) for one in answers)
    first = min(filter(None, firsts), default=0)
    if not first:
        return found
    with translated():
        try:
            async for message in channel.history(
                limit=MAX_SEARCHED, after=discord.Object(first - 1), oldest_first=True
            ):
                found.num_seen += 1
                if message.author == by:
                    found.seen[message.id] = message
        except discord.NotFound:  # the channel is gone, and each answer will be told so
            return found
        except discord.Forbidden:  # the history is not for us
            found.num_seen = MAX_SEARCHED
    return found


async def is_gone(channel: Channel, discord_id: int) -> bool:
    """Ask for a message once more: what a page lacks may only be late. Raises `OutboxError`."""
    with translated():
        try:
            await channel.fetch_message(discord_id)
        except discord.NotFound:
            return True
    return False


def is_open(channel: object) -> bool:
    """Tell whether we may look and edit in a channel; unknown counts as yes, Discord will say."""
    if not isinstance(channel, (discord.abc.GuildChannel, discord.Thread)):
        return True
    me: discord.Member | None = channel.guild.me  # None where the server is not there for now
    if me is None:
        return False
    if isinstance(channel, discord.Thread):
        if channel.parent is None:
            return True
        is_ours_to_open = may_open(channel) or channel.permissions_for(me).manage_threads
        if (channel.archived and not may_open(channel)) or (channel.locked and not is_ours_to_open):
            return False
    return channel.permissions_for(me).view_channel
