"""Copies that a bot posts for members, as it does for plural systems: whose they are, and of which message.

Such a bot posts what a member wrote under another name, and deletes the member's message. A copy counts where
the server allows its bot, and only if a member wrote it: webhooks themselves have nothing to say to us. Knows
nothing of what becomes of a question.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

import discord

from bot.servers.servers import Servers
from bot.tasks import Pause
from storage.errors import StorageError

SEEN_S = 15.0
"""How long after a message its copy may come."""
WAIT_S = 3.0
"""How long a deletion, or a message of whoever is known to be copied, waits for the copy."""
MAX_TAGS = 200
"""Characters of a message that its copy leaves out: they tell the bot whose it is."""
MAX_SEEN = 50
MAX_KNOWN = 1000


@dataclass(eq=False, slots=True)
class Original:
    """A member's message that may be copied."""

    message: discord.Message
    is_claimed: bool = False
    is_settled: bool = False
    """Its copy has taken its place."""
    is_deleted: bool = False
    is_refused: bool = False
    """Its author was told why it is not answered."""
    _claiming: Pause = field(default_factory=Pause)
    _settling: Pause = field(default_factory=Pause)

    def claim(self) -> None:
        """Note that a copy is there."""
        self.is_claimed = True
        self._claiming.end()

    def settle(self) -> None:
        """Note that the copy has taken its place, or will not."""
        self.is_settled = True
        self._settling.end()

    async def until_claimed(self) -> None:
        """Wait for a copy, for a while."""
        if not self.is_claimed:
            await self._claiming.wait(WAIT_S)

    async def until_settled(self) -> None:
        """Wait until a copy has taken its place, for a while."""
        if not self.is_settled:
            await self._settling.wait(WAIT_S)


class Proxies:
    """Remembers for a short while what members wrote where copies are answered."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._seen: dict[int, list[Original]] = {}
        self._known: OrderedDict[int, None] = OrderedDict()
        """People who were copied before, the newest last."""

    async def see(self, message: discord.Message) -> Original | None:
        """Remember a member's message; return it so, None where no copies are answered. Never raises."""
        if not await self._allowed(message.guild):
            return None
        original, channel_id = Original(message), message.channel.id
        seen = self._seen.setdefault(channel_id, [])
        seen.append(original)
        del seen[:-MAX_SEEN]
        asyncio.get_running_loop().call_later(SEEN_S, self._forget, channel_id, original)
        return original

    def _forget(self, channel_id: int, original: Original) -> None:
        seen = self._seen.get(channel_id, [])
        if original in seen:
            seen.remove(original)
        if not seen:
            self._seen.pop(channel_id, None)

    async def is_replaced(self, original: Original) -> bool:
        """Tell whether a copy has taken a message's place; of people known to be copied, wait for it."""
        if original.message.author.id in self._known:
            await original.until_claimed()
        return original.is_claimed or original.is_deleted

    async def claim(self, copy: discord.Message) -> Original | None:
        """Return what a webhook's message is the copy of, each once; None where it is none of ours."""
        allowed = await self._allowed(copy.guild)
        text = _text(copy)
        if copy.application_id is None or copy.application_id not in allowed or not text:
            return None
        found = [
            one
            for one in self._seen.get(copy.channel.id, ())
            if not one.is_claimed and _may_be_copied(_text(one.message), text)
        ]
        if not found:
            return None
        original = max(found, key=lambda one: (one.is_deleted, -len(_text(one.message))))
        original.claim()
        self._known[original.message.author.id] = None
        self._known.move_to_end(original.message.author.id)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return original

    async def deleted(self, channel_id: int, discord_id: int) -> bool:
        """Learn that a message was deleted; return whether a copy stands for it, which is waited for once."""
        seen = self._seen.get(channel_id, ())
        original = next((one for one in seen if one.message.id == discord_id), None)
        if original is None:
            return False
        if not original.is_deleted:
            original.is_deleted = True
            await original.until_settled()
        return original.is_claimed

    async def _allowed(self, guild: discord.Guild | None) -> frozenset[int]:
        try:
            return (await self._servers.config(None if guild is None else guild.id)).proxies
        except StorageError:
            return frozenset()


def _text(message: discord.Message) -> str:
    return " ".join(message.content.split())


def _may_be_copied(text: str, copy: str) -> bool:
    return copy in text and len(text) - len(copy) <= MAX_TAGS
