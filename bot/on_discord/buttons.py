"""Buttons and menus that outlive a restart: each carries in its id what it is for and what it acts on.

Nothing about them is kept in memory. Knows nothing of what a press does: that is the client's `presses`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol, Self, cast

import discord

from bot.fleet.fleet import Fleet
from bot.on_discord.interactions import data_of
from bot.on_discord.origins import Interaction


class Press(StrEnum):
    """What a button, a menu or a form is for. The values are part of messages on Discord: they stay."""

    STOP = "stop"
    REGENERATE = "regenerate"
    CONTINUE = "continue"
    REPORT = "report"
    UNDO_RESET = "undo"
    FORGET = "forget"
    HISTORY = "history"
    CONFIG = "config"
    PROMPT = "prompt"
    CATCHUP = "catchup"


OnPress = Callable[[Interaction, str], Awaitable[None]]
"""Acts on what the id says besides. Never raises for anything that we ever put there."""
_ID = rf"llamacord:(?P<press>{'|'.join(Press)}):(?P<argument>[a-z0-9_:]{{1,60}})"


class _HasPresses(Protocol):
    presses: Mapping[Press, OnPress]
    fleet: Fleet


class Lasting(discord.ui.DynamicItem[discord.ui.Item[Any]], template=_ID):
    """One button or menu."""

    @classmethod
    async def from_custom_id(
        cls,
        interaction: Interaction,  # noqa: ARG003 - discord.py's signature
        item: discord.ui.Item[Any],
        match: re.Match[str],  # noqa: ARG003
    ) -> Self:
        """Make the one that was used."""
        return cls(item)

    async def interaction_check(self, interaction: Interaction) -> bool:
        """Leave it to another process that may act for us by now."""
        return cast("_HasPresses", interaction.client).fleet.may_act()

    async def callback(self, interaction: Interaction) -> None:
        """Pass the press on."""
        presses, (press, argument) = cast("_HasPresses", interaction.client).presses, _read(self.custom_id)
        await presses[press](interaction, argument)


def id_of(press: Press, argument: object) -> str:
    """Return the id of a button, a menu or a form."""
    return f"llamacord:{press}:{argument}"


def button(
    press: Press,
    argument: object,
    label: str,
    style: discord.ButtonStyle = discord.ButtonStyle.secondary,
    row: int | None = None,
) -> Lasting:
    """Return a button."""
    item = discord.ui.Button[discord.ui.View](
        label=label[:80], style=style, custom_id=id_of(press, argument), row=row
    )
    return Lasting(item)


def view_of(*items: Lasting) -> discord.ui.View:
    """Return buttons and menus as a message shows them."""
    view = discord.ui.View(timeout=None)
    for item in items:
        view.add_item(item)
    return view


def on_number(act: Callable[[Interaction, int], Awaitable[None]]) -> OnPress:
    """Return what acts on a number: the id of an answer, a reset or a person."""
    return lambda interaction, argument: act(interaction, int(argument))


def form_of(interaction: Interaction) -> tuple[Press | None, str]:
    """Return what a form that was sent off is for and what its id says besides; None for one not of ours."""
    custom_id = str(data_of(interaction).get("custom_id", ""))
    return _read(custom_id) if re.fullmatch(_ID, custom_id) else (None, "")


def _read(custom_id: str) -> tuple[Press, str]:
    _, press, argument = custom_id.split(":", 2)
    return Press(press), argument
