"""Shows, after a start, how answers of an earlier run ended: those it cut off, and those that ended unseen.

Of what was cut off, nothing that stands on Discord is taken away: a note and a button are added below it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import discord

from bot.conversation.answering import can_go_on
from bot.delivery.delivery import Delivery, Outcome
from bot.delivery.outbox import Buttons, OutboxError, OutboxRetryError
from bot.delivery.pace import ChannelPace
from bot.delivery.render import with_note
from bot.language.phrases import phrase, render, unpacked
from bot.on_discord.answers.outboxes import DiscordOutbox, translated
from bot.on_discord.interactions import DISCORD_FAILURES
from bot.on_discord.origins import Locales
from bot.servers.server_config import ServerConfig
from bot.servers.servers import Servers
from storage.conversations import Conversations, InterruptedAnswer, MessageState
from storage.errors import StorageError

_log = logging.getLogger(__name__)

MAX_AT_ONCE = 4
"""Channels that are written in at the same time."""


class EarlierAnswers:
    """Brings what is shown of earlier answers up to date."""

    def __init__(
        self, client: discord.Client, conversations: Conversations, servers: Servers, locales: Locales
    ) -> None:
        self._client = client
        self._conversations = conversations
        self._servers = servers
        self._locales = locales

    async def show(self, answers: Sequence[InterruptedAnswer]) -> None:
        """Show them, in each channel one after the other, once it is known which language is spoken there."""
        if answers:
            await self._client.wait_until_ready()
        by_channel: dict[int, list[InterruptedAnswer]] = {}
        for one in answers:
            by_channel.setdefault(one.channel_id, []).append(one)
        room = asyncio.Semaphore(MAX_AT_ONCE)
        await asyncio.gather(*(self._show_all(ones, room) for ones in by_channel.values()))

    async def _show_all(self, answers: Sequence[InterruptedAnswer], room: asyncio.Semaphore) -> None:
        """Show the answers of one channel. Of those that were cut off only the last can be made again."""
        pace = ChannelPace()
        async with room:
            for one in answers:
                is_last = one is answers[-1]
                offered = Buttons.CONTINUE if can_go_on(one.answer) else Buttons.REGENERATE
                try:
                    await self._show(one, offered if is_last or not _is_cut_off(one) else Buttons.NONE, pace)
                except (StorageError, OutboxRetryError, *DISCORD_FAILURES) as error:
                    _log.warning("Answer %d is not shown as it ended: %s", one.answer.id, _kind(error))

    async def _show(self, one: InterruptedAnswer, buttons: Buttons, pace: ChannelPace) -> None:
        guild = getattr(self._client.get_channel(one.channel_id), "guild", None)
        locale = await self._locales.of(guild)
        is_cut_off = _is_cut_off(one)
        config = await self._servers.config(None if guild is None else guild.id)
        outbox = DiscordOutbox(
            self._client.get_partial_messageable(one.channel_id),
            answer_id=one.answer.id,
            trigger_id=one.question_discord_id,
            locale=locale,
            as_embeds=config.uses_embeds and not is_cut_off,
        )
        try:
            if is_cut_off and one.answer.content and one.part_ids:
                note = render(phrase("answer.cut_short"), locale)
                await self._add_note(outbox, one, note, buttons)
                outcome = Outcome.SHOWN
            else:
                outcome = await self._show_anew(
                    outbox, one, _note_of(one, config, locale), buttons, pace, locale
                )
        except OutboxRetryError:
            raise
        except OutboxError as error:
            _log.info("Answer %d can no longer be shown: %s", one.answer.id, _kind(error))
            outcome = Outcome.GONE
        if outcome is not Outcome.FAILED:
            await self._conversations.note_shown(one.answer.id)

    async def _show_anew(
        self,
        outbox: DiscordOutbox,
        one: InterruptedAnswer,
        note: str | None,
        buttons: Buttons,
        pace: ChannelPace,
        locale: str,
    ) -> Outcome:
        """Show the whole of an answer with its ending."""

        async def attach(position: int, discord_id: int) -> None:
            await self._conversations.attach_part(one.answer.id, discord_id, position)

        delivery = Delivery(
            outbox, answer_id=one.answer.id, on_part=attach, existing_parts=one.part_ids, pace=pace
        )
        file_note = render(phrase("answer.in_file"), locale)
        content = one.answer.content
        result = await delivery.finish(content, note=note, buttons=buttons, file_note=file_note)
        for discord_id in result.removed:
            await self._conversations.detach_part(discord_id)
        return result.outcome

    async def _add_note(
        self, outbox: DiscordOutbox, one: InterruptedAnswer, note: str, buttons: Buttons
    ) -> None:
        """Add to what is shown, which may be a little more than what was stored."""
        last_id = one.part_ids[-1]
        with translated():
            shown = await self._client.get_partial_messageable(one.channel_id).fetch_message(last_id)
        content = shown.content or "\n".join(e.description or "" for e in shown.embeds)
        parts = with_note([content], note) if note not in content else [content]
        await outbox.edit(last_id, parts[0], buttons=buttons)
        if len(parts) > 1:
            await outbox.send(parts[1], buttons=Buttons.NONE)


def _is_cut_off(one: InterruptedAnswer) -> bool:
    """Tell whether an answer has no ending of its own: the program ended before it."""
    return one.answer.state is MessageState.INTERRUPTED and one.note is None


def _note_of(one: InterruptedAnswer, config: ServerConfig, locale: str) -> str | None:
    """Return what is said below an answer; of one that came back, only what its server wants below all."""
    if one.answer.state is MessageState.INTERRUPTED:
        key = "answer.cut_short" if one.answer.content.strip() else "answer.never_begun"
        return render(phrase(key), locale)
    if one.note is not None:
        return render(unpacked(one.note), locale) or None
    return render(phrase("moderation.label"), locale) if config.labels_answers else None


def _kind(error: Exception) -> str:
    return type(error).__name__
