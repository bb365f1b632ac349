"""The button that confirms `/forget-me`. It carries the person's id, so it works after a restart.

Knows nothing of what it does: that is the client's `forgetting`.
"""

from __future__ import annotations

import re
from typing import Protocol, Self, cast

import discord

from bot.language.phrases import phrase, render

Interaction = discord.Interaction[discord.Client]


class Forgetting(Protocol):
    """What the button does."""

    async def forget(self, interaction: Interaction, user_id: int) -> None:
        """Forget a person. Never raises."""


class _HasForgetting(Protocol):
    forgetting: Forgetting


class ForgetButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"llamacord:forget:(?P<user_id>[0-9]{1,20})",
):
    """Deletes everything of one person."""

    def __init__(self, user_id: int, locale: object = "") -> None:
        self.user_id = user_id
        super().__init__(
            discord.ui.Button(
                label=render(phrase("forget_me.button"), locale),
                style=discord.ButtonStyle.danger,
                custom_id=f"llamacord:forget:{user_id}",
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
        return cls(int(match["user_id"]))

    async def callback(self, interaction: Interaction) -> None:
        """Pass the press on."""
        await cast("_HasForgetting", interaction.client).forgetting.forget(interaction, self.user_id)


def forget_view(user_id: int, locale: object) -> discord.ui.View:
    """Return the button alone."""
    view = discord.ui.View(timeout=None)
    view.add_item(ForgetButton(user_id, locale))
    return view
