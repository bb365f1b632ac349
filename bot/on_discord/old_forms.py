"""Forms that an earlier run showed: nobody waits for them any more, and what was typed is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import discord

from bot.language.phrases import phrase
from bot.on_discord.interactions import Interaction, data_of, say

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
