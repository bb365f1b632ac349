"""The `Outbox` on an interaction: for answers that only one person sees, and where we are no member.

Discord takes them for a quarter of an hour. Knows nothing of pacing and of what the texts mean.
"""

from __future__ import annotations

from contextlib import suppress

import discord

from bot.delivery.outbox import Buttons
from bot.on_discord.answers.buttons import answer_view
from bot.on_discord.answers.discord_outbox import SILENT, text_files, translated
from bot.on_discord.interactions import Interaction

TOKEN_LIFE_S = 14 * 60.0
"""After this long the answer must have ended: a minute is left to show how."""


class InteractionOutbox:
    """Writes an answer as the response to a command that was deferred, and as messages that follow it."""

    def __init__(self, interaction: Interaction, *, is_private: bool, locale: str) -> None:
        self.answer_id = 0
        self._interaction = interaction
        self._is_private = is_private
        self._locale = locale
        self._first_id: int | None = None

    async def send(self, content: str, *, buttons: Buttons, attachment: str = "") -> int:
        """Write the next message and return its id. The first one can be repeated without harm."""
        view = answer_view(self.answer_id, buttons, self._locale)
        with translated():
            if self._first_id is None:
                first = await self._interaction.edit_original_response(
                    content=content, view=view, attachments=text_files(attachment), allowed_mentions=SILENT
                )
                self._first_id = first.id
                return first.id
            message = await self._interaction.followup.send(
                content,
                view=view or discord.utils.MISSING,
                files=text_files(attachment),
                ephemeral=self._is_private,
                allowed_mentions=SILENT,
                wait=True,
            )
            return message.id

    async def edit(self, discord_id: int, content: str, *, buttons: Buttons, attachment: str = "") -> None:
        """Replace content, buttons and file of a message."""
        with translated():
            await self._interaction.followup.edit_message(
                discord_id,
                content=content,
                view=answer_view(self.answer_id, buttons, self._locale),
                attachments=text_files(attachment),
                allowed_mentions=SILENT,
            )

    async def delete(self, discord_id: int) -> None:
        """Delete a message; one that is deleted already is what is wanted."""
        with translated(), suppress(discord.NotFound):
            await self._interaction.followup.delete_message(discord_id)
