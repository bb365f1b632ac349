"""The buttons below an answer. They carry the answer's id, so they work after a restart.

Knows nothing of what they do: that is the client's `controls`.
"""

from __future__ import annotations

import re
from typing import Protocol, Self, cast

import discord

from bot.delivery.outbox import Buttons
from bot.language.catalog import ENGLISH
from bot.language.phrases import phrase, render
from bot.on_discord.moderation_buttons import ReportButton

Interaction = discord.Interaction[discord.Client]


class Controls(Protocol):
    """What the buttons do. No method raises."""

    async def stop(self, interaction: Interaction, answer_id: int) -> None:
        """End the answer."""

    async def regenerate(self, interaction: Interaction, answer_id: int) -> None:
        """Answer the same question again."""

    async def continue_(self, interaction: Interaction, answer_id: int) -> None:
        """Go on with an answer that was cut short."""


class _HasControls(Protocol):
    controls: Controls


def _controls(interaction: Interaction) -> Controls:
    return cast("_HasControls", interaction.client).controls


class StopButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"llamacord:stop:(?P<answer_id>[0-9]{1,18})",
):
    """Ends the answer above it."""

    def __init__(self, answer_id: int, locale: str = ENGLISH) -> None:
        self.answer_id = answer_id
        super().__init__(
            discord.ui.Button(
                label=render(phrase("buttons.stop"), locale),
                style=discord.ButtonStyle.secondary,
                custom_id=f"llamacord:stop:{answer_id}",
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
        await _controls(interaction).stop(interaction, self.answer_id)


class RegenerateButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"llamacord:regenerate:(?P<answer_id>[0-9]{1,18})",
):
    """Makes another answer in the place of the one above it."""

    def __init__(self, answer_id: int, locale: str = ENGLISH, *, label: str = "buttons.regenerate") -> None:
        self.answer_id = answer_id
        super().__init__(
            discord.ui.Button(
                label=render(phrase(label), locale),
                style=discord.ButtonStyle.secondary,
                custom_id=f"llamacord:regenerate:{answer_id}",
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
        await _controls(interaction).regenerate(interaction, self.answer_id)


class ContinueButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"llamacord:continue:(?P<answer_id>[0-9]{1,18})",
):
    """Goes on with the answer above it."""

    def __init__(self, answer_id: int, locale: str = ENGLISH) -> None:
        self.answer_id = answer_id
        super().__init__(
            discord.ui.Button(
                label=render(phrase("buttons.continue"), locale),
                style=discord.ButtonStyle.secondary,
                custom_id=f"llamacord:continue:{answer_id}",
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
        await _controls(interaction).continue_(interaction, self.answer_id)


ANSWER_BUTTONS = (StopButton, RegenerateButton, ContinueButton)


def answer_view(answer_id: int, buttons: Buttons, locale: str) -> discord.ui.View | None:
    """Return the buttons below an answer, labelled for the readers there; None for none."""
    if buttons is Buttons.NONE:
        return None
    view = discord.ui.View(timeout=None)
    match buttons:
        case Buttons.STOP:
            view.add_item(StopButton(answer_id, locale))
        case Buttons.REDO:
            view.add_item(RegenerateButton(answer_id, locale, label="buttons.redo"))
        case _:
            view.add_item(RegenerateButton(answer_id, locale))
    if buttons is Buttons.CONTINUE:
        view.add_item(ContinueButton(answer_id, locale))
    if buttons is not Buttons.STOP:
        view.add_item(ReportButton(answer_id, locale))
    return view
