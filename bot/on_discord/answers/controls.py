"""What the buttons below an answer do: who may press them, and on which answer.

The id in a button is not trusted: it counts only if the message with the button shows that answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import discord

from bot.conversation.permissions import may_steer
from bot.conversation.service import ChatService
from bot.errors import NotAllowedError, NotOfThisMessageError
from bot.language.phrases import phrase
from bot.on_discord.answers.discord_answer import DiscordAnswer
from bot.on_discord.answers.discord_outbox import Channel
from bot.on_discord.asking.incoming import origin_of
from bot.on_discord.interactions import Interaction, acknowledge, actor_of, data_of, reporting, say

MakeAnswer = Callable[[Channel, int | None], Awaitable[DiscordAnswer]]
"""Returns what shows an answer in a channel, as a reply to a message. Raises `StorageError`."""


class AnswerControls:
    """Carries out the presses of Stop, Regenerate and Continue."""

    def __init__(self, chat: ChatService, make_answer: MakeAnswer) -> None:
        self._chat = chat
        self._make_answer = make_answer

    async def stop(self, interaction: Interaction, answer_id: int) -> None:
        """End a running or waiting answer."""
        async with reporting(interaction):
            await acknowledge(interaction)
            await self._check(interaction, answer_id)
            if not self._chat.stop(answer_id):
                await say(interaction, phrase("answer.ended_already"))

    async def regenerate(self, interaction: Interaction, answer_id: int) -> None:
        """Make another answer in the same messages."""
        await self._again(interaction, answer_id, go_on=False)

    async def continue_(self, interaction: Interaction, answer_id: int) -> None:
        """Go on with an answer in the same messages."""
        await self._again(interaction, answer_id, go_on=True)

    async def _again(self, interaction: Interaction, answer_id: int, *, go_on: bool) -> None:
        async with reporting(interaction):
            await acknowledge(interaction)
            message = await self._check(interaction, answer_id)
            trigger_id = None if message.reference is None else message.reference.message_id
            view = await self._make_answer(message.channel, trigger_id)
            origin = origin_of(interaction)
            await self._chat.regenerate(message.channel.id, answer_id, view, origin, go_on=go_on)

    async def _check(self, interaction: Interaction, answer_id: int) -> discord.Message:
        """Return the message with the button. Raises where the press does not count."""
        message = interaction.message
        if message is None or not await self._chat.is_shown_by(answer_id, message.id):
            raise NotOfThisMessageError
        if not may_steer(actor_of(interaction), await self._chat.asker_of(answer_id)):
            raise NotAllowedError(phrase("errors.not_the_asker"))
        return message


GRACE_S = 1.5
"""Whoever knows a form answers it sooner, and Discord waits for 3 seconds."""
_MAX_SHOWN = 1800


async def answer_old_form(interaction: Interaction) -> None:
    """Say that a form is too old, unless it has been answered."""
    await asyncio.sleep(GRACE_S)
    if not interaction.response.is_done():
        typed = "\n".join(_values(data_of(interaction)))
        shown = discord.utils.escape_markdown(typed[: _MAX_SHOWN // 2])
        await say(interaction, phrase("errors.old_form"), shown)


def _values(part: Mapping[str, Any]) -> Iterator[str]:
    """Give all texts that were typed, whatever the form looks like."""
    if isinstance(part.get("value"), str):
        yield part["value"]
    nested = [*part.get("components", ()), *([part["component"]] if "component" in part else [])]
    for inner in nested:
        yield from _values(inner)
