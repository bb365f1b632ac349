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


class AnswerButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"llamacord:(?P<act>stop|regenerate|continue):(?P<answer_id>[0-9]{1,18})",
):
    """Does something with the answer above it: `act` is what. `label` is the key of its phrase."""

    def __init__(self, act: str, answer_id: int, locale: str = ENGLISH, *, label: str = "") -> None:
        self.act = act
        self.answer_id = answer_id
        super().__init__(
            discord.ui.Button(
                label=render(phrase(label or f"buttons.{act}"), locale),
                style=discord.ButtonStyle.secondary,
                custom_id=f"llamacord:{act}:{answer_id}",
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
        return cls(match["act"], int(match["answer_id"]))

    async def callback(self, interaction: Interaction) -> None:
        """Pass the press on."""
        controls = _controls(interaction)
        acts = {"stop": controls.stop, "regenerate": controls.regenerate, "continue": controls.continue_}
        await acts[self.act](interaction, self.answer_id)


def answer_view(answer_id: int, buttons: Buttons, locale: str) -> discord.ui.View | None:
    """Return the buttons below an answer, labelled for the readers there; None for none."""
    if buttons is Buttons.NONE:
        return None
    view = discord.ui.View(timeout=None)
    if buttons is Buttons.STOP:
        return view.add_item(AnswerButton("stop", answer_id, locale))
    label = "buttons.redo" if buttons is Buttons.REDO else ""
    view.add_item(AnswerButton("regenerate", answer_id, locale, label=label))
    if buttons is Buttons.CONTINUE:
        view.add_item(AnswerButton("continue", answer_id, locale))
    return view.add_item(ReportButton(answer_id, locale))
