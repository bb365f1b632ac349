"""The buttons that outlive a restart: each carries what it does and the number of what it does it to.

The number is of an answer, a reset or a person. Knows nothing of what a press does: that is the client's
`presses`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Protocol, Self, cast

import discord

from bot.delivery.outbox import Buttons
from bot.language.phrases import phrase, render

Interaction = discord.Interaction[discord.Client]


class Press(StrEnum):
    """What a button does. The values are part of messages on Discord: they stay as they are."""

    STOP = "stop"
    REGENERATE = "regenerate"
    CONTINUE = "continue"
    REPORT = "report"
    UNDO_RESET = "undo"
    FORGET = "forget"


OnPress = Callable[[Interaction, int], Awaitable[None]]
"""Acts on the number that a button carries. Never raises."""


class _HasPresses(Protocol):
    presses: Mapping[Press, OnPress]


class NumberedButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=rf"llamacord:(?P<press>{'|'.join(Press)}):(?P<number>[0-9]{{1,20}})",
):
    """One button."""

    def __init__(
        self,
        press: Press,
        number: int,
        label: str = "…",
        style: discord.ButtonStyle = discord.ButtonStyle.secondary,
    ) -> None:
        self.press = press
        self.number = number
        super().__init__(discord.ui.Button(label=label, style=style, custom_id=f"llamacord:{press}:{number}"))

    @classmethod
    async def from_custom_id(
        cls,
        interaction: Interaction,  # noqa: ARG003 - discord.py's signature
        item: discord.ui.Item[discord.ui.View],  # noqa: ARG003
        match: re.Match[str],
    ) -> Self:
        """Make the button that was pressed."""
        return cls(Press(match["press"]), int(match["number"]))

    async def callback(self, interaction: Interaction) -> None:
        """Pass the press on."""
        await cast("_HasPresses", interaction.client).presses[self.press](interaction, self.number)


_BELOW_AN_ANSWER: Mapping[Buttons, tuple[tuple[Press, str], ...]] = {
    Buttons.NONE: (),
    Buttons.STOP: ((Press.STOP, "buttons.stop"),),
    Buttons.REGENERATE: ((Press.REGENERATE, "buttons.regenerate"), (Press.REPORT, "moderation.report")),
    Buttons.REDO: ((Press.REGENERATE, "buttons.redo"), (Press.REPORT, "moderation.report")),
    Buttons.CONTINUE: (
        (Press.REGENERATE, "buttons.regenerate"),
        (Press.CONTINUE, "buttons.continue"),
        (Press.REPORT, "moderation.report"),
    ),
}


_OF_AN_ANSWER = re.compile(r"llamacord:(stop|regenerate|continue|report):(?P<number>[0-9]{1,20})")


def answer_view(answer_id: int, buttons: Buttons, locale: object) -> discord.ui.View | None:
    """Return the buttons below an answer, labelled for the readers there; None for none."""
    if buttons is Buttons.NONE:
        return None
    view = discord.ui.View(timeout=None)
    for press, key in _BELOW_AN_ANSWER[buttons]:
        view.add_item(NumberedButton(press, answer_id, render(phrase(key), locale)))
    return view


def buttons_below(message: discord.Message, answer_id: int, locale: object) -> Buttons | None:
    """Return which buttons of an answer a message has, None for any others."""
    found = [(item.custom_id, item.label) for item in _items(message)]
    for buttons in Buttons:
        view = answer_view(answer_id, buttons, locale)
        children = () if view is None else view.children
        if found == [
            (one.item.custom_id, one.item.label) for one in children if isinstance(one, NumberedButton)
        ]:
            return buttons
    return None


def numbers_below(message: discord.Message) -> set[int]:
    """Return the numbers of the answers that a message has buttons for."""
    found = (_OF_AN_ANSWER.fullmatch(item.custom_id or "") for item in _items(message))
    return {int(one["number"]) for one in found if one is not None}


def _items(message: discord.Message) -> list[discord.Button]:
    rows = (row for row in message.components if isinstance(row, discord.ActionRow))
    return [item for row in rows for item in row.children if isinstance(item, discord.Button)]


def undo_view(reset_id: int, locale: object) -> discord.ui.View:
    """Return the button below a reset."""
    view = discord.ui.View(timeout=None)
    view.add_item(NumberedButton(Press.UNDO_RESET, reset_id, render(phrase("moderation.undo"), locale)))
    return view


def forget_view(user_id: int, locale: object) -> discord.ui.View:
    """Return the button that confirms `/forget-me`."""
    label = render(phrase("forget_me.button"), locale)
    view = discord.ui.View(timeout=None)
    view.add_item(NumberedButton(Press.FORGET, user_id, label, discord.ButtonStyle.danger))
    return view
