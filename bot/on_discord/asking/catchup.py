"""`/catchup`: what was said in a channel since one's own last message, or since a time, for one person alone.

What is summed up is read for that, and kept nowhere. Knows nothing of how it is summed up.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import discord
from discord import app_commands

from bot.conversation.catching_up import CaughtUp, read_since
from bot.conversation.service import ChatService
from bot.conversation.talk import Heard
from bot.delivery.render import render as in_messages
from bot.errors import ChatError, NotAllowedError
from bot.language.phrases import phrase, render
from bot.on_discord.answers.outboxes import TOKEN_LIFE_S
from bot.on_discord.asking.channel_talk import PLACES, ChannelTalk, Place, heard_in
from bot.on_discord.buttons import Press, button, view_of
from bot.on_discord.interactions import SILENT, acknowledge, answering, reporting, say
from bot.on_discord.origins import Interaction, bot_of, conversation_of, origin_of
from engine.tracing import new_trace, traced

MAX_MESSAGES = 500
"""Looked at, in five requests."""
MAX_SINCE_CHARS = 100
SHOW_TIME_S = 20.0
"""What is left of the time that Discord gives, to show what there is."""


@dataclass(frozen=True, slots=True)
class _Missed:
    """What somebody missed, oldest first. is_all: whether that is all since the time or message meant."""

    heard: Sequence[Heard]
    is_all: bool


class CatchUp:
    """Carries out the command, and the button that ends it. One at a time for each person."""

    def __init__(self, chat: ChatService, talk: ChannelTalk) -> None:
        self._chat = chat
        self._talk = talk
        self._running: dict[int, asyncio.Task[CaughtUp] | None] = {}

    def command(self) -> app_commands.Command[Any, ..., None]:
        """Return `/catchup`."""

        @app_commands.command(name="catchup", description="What you missed in this channel, for you alone")
        @app_commands.describe(since="Since when: 30m, 2h, 3 days or a date; if empty, your last message")
        @app_commands.guild_only()
        async def catchup(
            interaction: Interaction, since: app_commands.Range[str, 1, MAX_SINCE_CHARS] | None = None
        ) -> None:
            async with answering(interaction):
                await self._run(interaction, since)

        return catchup

    async def stop(self, interaction: Interaction, user_id: int) -> None:
        """End what somebody has running."""
        async with reporting(interaction):
            if interaction.user.id != user_id:
                raise NotAllowedError(phrase("errors.not_the_asker"))
            await acknowledge(interaction)
            task = self._running.get(user_id)
            if task is None:
                await say(interaction, phrase("answer.ended_already"))
            else:
                task.cancel()

    async def close(self) -> None:
        """End all of it."""
        running = [task for task in self._running.values() if task is not None]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _run(self, interaction: Interaction, since: str | None) -> None:
        """Do it, unless the person has one running, until it is done or stopped. Raises what refuses it."""
        user_id = interaction.user.id
        if user_id in self._running:
            raise ChatError(phrase("catchup.running"))
        self._running[user_id] = None
        try:
            await self._do(interaction, since)
        finally:
            task = self._running.pop(user_id)
            if task is not None:
                task.cancel()

    async def _do(self, interaction: Interaction, since: str | None) -> None:
        place = await self._place(interaction)
        missed = await self._missed(interaction, place, _time(since, interaction.created_at))
        if not missed.heard:
            await say(interaction, phrase("catchup.nothing"))
            return
        task = asyncio.create_task(self._summed_up(interaction, missed))
        self._running[interaction.user.id] = task
        await asyncio.wait({task})
        if task.cancelled():
            await say(interaction, phrase("catchup.stopped"))
        else:
            await _show(interaction, missed, task.result())

    async def _summed_up(self, interaction: Interaction, missed: _Missed) -> CaughtUp:
        age_s = (discord.utils.utcnow() - interaction.created_at).total_seconds()
        with traced(new_trace()):
            return await self._chat.catching_up.sum_up(
                missed.heard,
                conversation_of(interaction),
                origin_of(interaction),
                functools.partial(_show_progress, interaction),
                asyncio.get_running_loop().time() + TOKEN_LIFE_S - SHOW_TIME_S - age_s,
            )

    async def _place(self, interaction: Interaction) -> Place:
        """Return the channel. Raises `ChatError` where what was said there is not read for this person."""
        if not self._talk.sees_all:
            raise NotAllowedError(phrase("free.no_intent"))
        if not await self._talk.listens(interaction.guild_id):
            raise NotAllowedError(phrase("catchup.off"))
        channel, us = interaction.channel, interaction.app_permissions
        if not isinstance(channel, PLACES) or not (us.view_channel and us.read_message_history):
            raise NotAllowedError(phrase("catchup.unreadable"))
        if not interaction.permissions.read_message_history:
            raise NotAllowedError(phrase("catchup.not_yours"))
        await self._chat.admit(origin_of(interaction))
        return channel

    async def _missed(self, interaction: Interaction, place: Place, since: datetime | None) -> _Missed:
        """Read what was said, back to a time or to the person's last message that others followed."""
        found: list[Heard] = []
        num_read, is_all, user_id = 0, False, interaction.user.id
        us = interaction.client.user
        if us is None:
            return _Missed((), is_all=True)
        bot = bot_of(us, place.guild)
        async for message in place.history(limit=MAX_MESSAGES):
            num_read += 1
            is_own = message.author.id == user_id
            if (is_own and found) if since is None else message.created_at < since:
                is_all = True
                break
            heard = heard_in(message, bot, to_us_too=True)
            if heard is not None and (since is not None or not is_own):
                found.append(heard)
        found.reverse()
        may = await self._chat.may_be_heard(origin_of(interaction), found)
        return _Missed(may, is_all or num_read < MAX_MESSAGES)


def _time(since: str | None, now: datetime) -> datetime | None:
    """Return the time that is meant, None for none. Raises `ChatError`."""
    if since is None:
        return None
    at = read_since(since, now)
    if at is None:
        raise ChatError(phrase("catchup.bad_since"))
    return at


async def _show_progress(interaction: Interaction, done: int, total: int) -> None:
    """Show how far it is, with a button to stop it. Never raises."""
    label = render(phrase("buttons.stop"), interaction.locale)
    stop = button(Press.CATCHUP, interaction.user.id, label, discord.ButtonStyle.danger)
    await say(interaction, phrase("catchup.reading", done=done + 1, total=total), view=view_of(stop))


async def _show(interaction: Interaction, missed: _Missed, caught_up: CaughtUp) -> None:
    """Show what was said, in as many messages as it takes."""
    people = phrase("catchup.people", num=len({one.author_id for one in missed.heard}))
    first = discord.utils.format_dt(missed.heard[0].said_at, "R")
    head = phrase("catchup.head", num=len(missed.heard), people=people, first=first)
    notes = []
    if caught_up.num_left_out:
        notes.append(phrase("catchup.left_out", num=caught_up.num_left_out))
    elif not missed.is_all:
        notes.append(phrase("catchup.only_newest", limit=MAX_MESSAGES))
    if not caught_up.is_whole:
        notes.append(phrase("catchup.out_of_time"))
    lines = [f"-# {render(note, interaction.locale)}" for note in notes]
    text = caught_up.text
    if not text and caught_up.is_whole:
        text = render(phrase("catchup.empty"), interaction.locale)
    whole = "\n".join(filter(None, (render(head, interaction.locale), text, *lines)))
    first_part, *others = in_messages(whole, final=True)
    await say(interaction, first_part)
    for part in others:
        await interaction.followup.send(part, ephemeral=True, allowed_mentions=SILENT, suppress_embeds=True)
