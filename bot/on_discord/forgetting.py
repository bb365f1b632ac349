"""Forgets a person who confirmed it, and gives them a receipt."""

from __future__ import annotations

import logging

import discord

from bot.conversation.service import ChatService
from bot.errors import NotAllowedError
from bot.language.phrases import phrase, render
from bot.on_discord.interactions import Interaction, acknowledge, reporting
from storage.people import Forgotten, People

_log = logging.getLogger(__name__)


class PersonForgetting:
    """Carries out the confirmation of `/forget-me`."""

    def __init__(self, chat: ChatService, people: People) -> None:
        self._chat = chat
        self._people = people

    async def forget(self, interaction: Interaction, user_id: int) -> None:
        """End the person's answers, delete everything of theirs, and say how much that was."""
        async with reporting(interaction):
            if interaction.user.id != user_id:
                raise NotAllowedError(phrase("forget_me.not_yours"))
            await acknowledge(interaction)
            self._chat.stop_person(user_id)
            forgotten = await self._people.forget(user_id)
            await _show(interaction, forgotten)


async def _show(interaction: Interaction, forgotten: Forgotten) -> None:
    """Put the receipt in the place of the question and its button."""
    receipt = phrase(
        "forget_me.receipt",
        num_questions=forgotten.num_questions,
        num_answers=forgotten.num_answers,
        num_conversations=forgotten.num_conversations,
    )
    try:
        await interaction.edit_original_response(content=render(receipt, interaction.locale), view=None)
    except discord.HTTPException as error:
        _log.warning("A receipt could not be shown: status %d, code %d", error.status, error.code)
