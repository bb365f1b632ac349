"""The buttons of moderation: Report below an answer, Undo below a reset. They work after a restart.

Knows nothing of what they do: that is the client's `moderation_controls`.
"""

from __future__ import annotations

import re
from typing import Protocol, Self, cast

import discord

from bot.language.catalog import ENGLISH
from bot.language.phrases import phrase, render

Interaction = discord.Interaction[discord.Client]


class ModerationControls(Protocol):
    """What the buttons do. Neither method raises."""

    async def report(self, interaction: Interaction, answer_id: int) -> None:
        """Tell the moderators of an answer."""

    async def undo_reset(self, interaction: Interaction, reset_id: int) -> None:
        """Bring back what a reset put aside."""


class _HasControls(Protocol):
    moderation_controls: ModerationControls


def _controls(interaction: Interaction) -> ModerationControls:
    return cast("_HasControls", interaction.client).moderation_controls


class ReportButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"llamacord:report:(?P<answer_id>[0-9]{1,18})",
):
    """Tells the moderators of the answer above it."""

    def __init__(self, answer_id: int, locale: str = ENGLISH) -> None:
        self.answer_id = answer_id
        super().__init__(
            discord.ui.Button(
                label=render(phrase("moderation.report"), locale),
                style=discord.ButtonStyle.secondary,
                custom_id=f"llamacord:report:{answer_id}",
            )
        )

    @classmethod
    async def from_custom_id(
        cls,
        interaction: Interaction,  # noqa: ARG003 - discord.py's signature
        item: discord.ui.Item[discord.ui.View],  # noqa: ARG003
        match: re.Match[str],
    ) -> Self:
        """Make the button that was pressed."""
        return cls(int(match["answer_id"]))

    async def callback(self, interaction: Interaction) -> None:
        """Pass the press on."""
        await _controls(interaction).report(interaction, self.answer_id)


class UndoResetButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"llamacord:undo:(?P<reset_id>[0-9]{1,18})",
):
    """Brings back what a reset put aside."""

    def __init__(self, reset_id: int, locale: object = ENGLISH) -> None:
        self.reset_id = reset_id
        super().__init__(
            discord.ui.Button(
                label=render(phrase("moderation.undo"), locale),
                style=discord.ButtonStyle.secondary,
                custom_id=f"llamacord:undo:{reset_id}",
            )
        )

    @classmethod
    async def from_custom_id(
        cls,
        interaction: Interaction,  # noqa: ARG003 - discord.py's signature
        item: discord.ui.Item[discord.ui.View],  # noqa: ARG003
        match: re.Match[str],
    ) -> Self:
        """Make the button that was pressed."""
        return cls(int(match["reset_id"]))

    async def callback(self, interaction: Interaction) -> None:
        """Pass the press on."""
        await _controls(interaction).undo_reset(interaction, self.reset_id)


def undo_view(reset_id: int, locale: object) -> discord.ui.View:
    """Return the button below a reset."""
    view = discord.ui.View(timeout=None)
    view.add_item(UndoResetButton(reset_id, locale))
    return view
