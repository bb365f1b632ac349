"""The moderators' log channel: what happened, in one line each, pinging nobody and quoting nobody.

Owns the pace: a bounded queue and one task, so that neither a flood of refusals nor a channel that is gone
holds anything up. Each server's notices go to that server's own channel only.
"""

from __future__ import annotations

import logging
from collections import deque

import discord

from bot.language.phrases import phrase, render
from bot.on_discord.interactions import DISCORD_FAILURES, SILENT
from bot.on_discord.moderation.reset import undo_view
from bot.on_discord.origins import Locales
from bot.servers.rates import Buckets, Rate, loop_seconds
from bot.servers.servers import Notice, NoticeKind, Servers
from bot.tasks import Tasks
from storage.errors import StorageError

_log = logging.getLogger(__name__)

MAX_WAITING = 200
LINES_PER_MINUTE = 30
"""For one server; more are left out."""
_KEYS = {
    NoticeKind.RESET: "log.reset",
    NoticeKind.RESET_UNDONE: "log.reset_undone",
    NoticeKind.BLOCKED: "log.blocked",
    NoticeKind.UNBLOCKED: "log.unblocked",
    NoticeKind.CONFIG_CHANGED: "log.config_changed",
    NoticeKind.QUESTION_REFUSED: "log.question_refused",
    NoticeKind.QUESTION_UNCHECKED: "log.question_timeout",
    NoticeKind.QUESTION_UNSAFE: "log.question_unsafe",
    NoticeKind.ANSWER_WITHHELD: "log.answer_withheld",
    NoticeKind.REPORTED: "log.reported",
}


class ModLog:
    """Writes notices into log channels. `close` it before its event loop ends."""

    def __init__(self, client: discord.Client, servers: Servers, locales: Locales) -> None:
        self._client = client
        self._locales = locales
        self._servers = servers
        self._waiting: deque[Notice] = deque()
        self._tasks = Tasks()
        self._buckets = Buckets(loop_seconds)

    def post(self, notice: Notice) -> None:
        """Queue a notice; one too many is left out."""
        rate = Rate(notice.guild_id, LINES_PER_MINUTE)
        if self._buckets.wait_s(rate) > 0 or len(self._waiting) >= MAX_WAITING:
            _log.warning("Server %d: a line of the moderators' log was left out", notice.guild_id)
            return
        self._buckets.take([rate])
        self._waiting.append(notice)
        if not self._tasks:
            self._tasks.start(self._work(), "moderators' log")

    async def close(self) -> None:
        """Write no more."""
        self._waiting.clear()
        await self._tasks.close()

    async def _work(self) -> None:
        """Write what is queued. What cannot be written is left out."""
        while self._waiting:
            notice = self._waiting.popleft()
            try:
                await self._write(notice)
            except (StorageError, *DISCORD_FAILURES) as error:
                _log.warning(
                    "Server %d: the moderators' log could not be written: %s",
                    notice.guild_id,
                    type(error).__name__,
                )
            except Exception:  # noqa: BLE001 - the edge of the task: the next notice is written
                _log.exception("The moderators' log failed")

    async def _write(self, notice: Notice) -> None:
        config = await self._servers.config(notice.guild_id)
        guild = self._client.get_guild(notice.guild_id)
        if config.log_channel is None or guild is None:
            return
        channel = guild.get_channel_or_thread(config.log_channel)
        if not isinstance(channel, discord.abc.Messageable):
            return
        locale = await self._locales.of(guild)
        await channel.send(
            render(line_of(notice), locale),
            view=self._view_of(notice, locale) or discord.utils.MISSING,
            allowed_mentions=SILENT,
            suppress_embeds=True,
        )

    @staticmethod
    def _view_of(notice: Notice, locale: str) -> discord.ui.View | None:
        if notice.kind is not NoticeKind.RESET or notice.reset_id is None:
            return None
        return undo_view(notice.reset_id, locale)


def line_of(notice: Notice) -> str:
    """Return the line for a notice, a phrase."""
    return phrase(
        _KEYS[notice.kind],
        by=f"<@{notice.by_user_id}>",
        about=f"<@{notice.about_user_id}>" if notice.about_user_id is not None else "?",
        channel=f"<#{notice.channel_id}>",
        count=phrase("counts.messages", num=notice.num),
        detail=notice.detail,
    )
