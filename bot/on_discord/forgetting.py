"""Forgets a person who confirmed it, and gives them a receipt."""

from __future__ import annotations

from collections.abc import Callable

from bot.conversation.service import ChatService
from bot.errors import NotAllowedError
from bot.language.phrases import phrase
from bot.on_discord.interactions import Interaction, acknowledge, reporting, show_instead
from storage.people import People


class PersonForgetting:
    """Carries out the confirmation of `/forget-me`. `on_forgotten` is called when somebody is forgotten."""

    def __init__(self, chat: ChatService, people: People, on_forgotten: Callable[[], None]) -> None:
        self._chat = chat
        self._people = people
        self._on_forgotten = on_forgotten

    async def forget(self, interaction: Interaction, user_id: int) -> None:
        """End the person's answers, delete everything of theirs, and put how much that was in the place of
        the question and its button.
        """
        async with reporting(interaction):
            if interaction.user.id != user_id:
                raise NotAllowedError(phrase("forget_me.not_yours"))
            await acknowledge(interaction)
            await self._chat.drop_person(user_id)
            forgotten = await self._people.forget(user_id)
            self._on_forgotten()
            receipt = phrase(
                "forget_me.receipt",
                num_questions=forgotten.num_questions,
                num_answers=forgotten.num_answers,
                num_conversations=forgotten.num_conversations,
            )
            await show_instead(interaction, receipt)
