"""Marks, after a start, the answers that an earlier run left unfinished.

What stands on Discord is never taken away: a note and a button are added below it. Knows nothing of storage.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import discord

from bot.conversation.answering import can_go_on
from bot.delivery.delivery import Delivery
from bot.delivery.outbox import Buttons, OutboxError
from bot.delivery.pace import ChannelPace
from bot.delivery.render import with_note
from bot.language.phrases import phrase, render
from bot.on_discord.discord_outbox import DISCORD_FAILURES, DiscordOutbox
from bot.on_discord.locales import locale_of
from storage.conversations import Conversations, InterruptedAnswer, MessageState
from storage.errors import StorageError

_log = logging.getLogger(__name__)


async def mark_interrupted(
    client: discord.Client, conversations: Conversations, interrupted: Sequence[InterruptedAnswer]
) -> None:
    """Mark them, channel by channel one after the other, once it is known which language is spoken there."""
    if interrupted:
        await client.wait_until_ready()
    by_channel: dict[int, list[InterruptedAnswer]] = {}
    for one in interrupted:
        by_channel.setdefault(one.channel_id, []).append(one)
    await asyncio.gather(*(_mark_all(client, conversations, ones) for ones in by_channel.values()))


async def _mark_all(
    client: discord.Client, conversations: Conversations, interrupted: Sequence[InterruptedAnswer]
) -> None:
    """Mark the answers of one channel. Only the last one can still be regenerated."""
    pace = ChannelPace()
    for one in interrupted:
        offered = Buttons.CONTINUE if can_go_on(one.answer) else Buttons.REGENERATE
        buttons = offered if one is interrupted[-1] else Buttons.NONE
        try:
            await _mark(client, conversations, one, buttons, pace)
        except (OutboxError, StorageError, *DISCORD_FAILURES) as error:
            _log.warning("Interrupted answer %d was not marked: %s", one.answer.id, type(error).__name__)


async def _mark(
    client: discord.Client,
    conversations: Conversations,
    one: InterruptedAnswer,
    buttons: Buttons,
    pace: ChannelPace,
) -> None:
    answer = one.answer
    channel = client.get_partial_messageable(one.channel_id)
    locale = locale_of(getattr(client.get_channel(one.channel_id), "guild", None))
    outbox = DiscordOutbox(channel, answer_id=answer.id, trigger_id=one.question_discord_id, locale=locale)
    if answer.state is MessageState.INTERRUPTED and answer.content and one.part_ids:
        cut_short = render(phrase("answer.cut_short"), locale)
        await _add_note(channel, outbox, one.part_ids[-1], cut_short, buttons)
        return

    async def attach(position: int, discord_id: int) -> None:
        await conversations.attach_part(answer.id, discord_id, position)

    never_begun = answer.state is MessageState.INTERRUPTED
    note = render(phrase("answer.never_begun"), locale) if never_begun else None
    delivery = Delivery(outbox, answer_id=answer.id, on_part=attach, existing_parts=one.part_ids, pace=pace)
    await delivery.finish(answer.content, note=note, buttons=buttons)


async def _add_note(
    channel: discord.PartialMessageable, outbox: DiscordOutbox, last_id: int, note: str, buttons: Buttons
) -> None:
    """Add to what is shown, which may be a little more than what was stored."""
    shown = await channel.fetch_message(last_id)
    parts = with_note([shown.content or "\n".join(e.description or "" for e in shown.embeds)], note)
    await outbox.edit(last_id, parts[0], buttons=buttons)
    if len(parts) > 1:
        await outbox.send(parts[1], buttons=Buttons.NONE)
