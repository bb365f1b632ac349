"""A system prompt in the making: the form it is written in, and the preview with what can be done with it.

The draft stands in the preview itself, whose author we are, so nothing of it is kept in memory and its
buttons outlive a restart. Knows nothing of who may set a prompt.
"""

from __future__ import annotations

from enum import StrEnum

import discord

from bot.language.phrases import phrase, render
from bot.on_discord.buttons import Press, button, id_of, view_of
from bot.parameters import MAX_SYSTEM_PROMPT_CHARS

FIELD = "text"
"""The id of the form's field."""


class Scope(StrEnum):
    """What a draft is for. The values are part of messages on Discord: they stay as they are."""

    CONVERSATION = "conversation"
    SERVER = "server"


class Act(StrEnum):
    """What is done with a draft. The values stay as they are, too."""

    SAVE = "save"
    EDIT = "edit"
    DISCARD = "discard"


def draft_form(scope: Scope, title: str, cost: str, text: str) -> discord.ui.Modal:
    """Return the form; Discord counts the characters while one types. A server's may be left empty."""
    modal = discord.ui.Modal(title=title[:45], custom_id=id_of(Press.PROMPT, f"form:{scope}"), timeout=600.0)
    modal.add_item(
        discord.ui.TextInput[discord.ui.Modal](
            label=cost[:45],
            custom_id=FIELD,
            default=text[:MAX_SYSTEM_PROMPT_CHARS],
            style=discord.TextStyle.paragraph,
            max_length=MAX_SYSTEM_PROMPT_CHARS,
            required=scope is Scope.CONVERSATION,
        )
    )
    return modal


def draft_view(scope: Scope, locale: object, *, can_save: bool) -> discord.ui.View:
    """Return the buttons below a preview."""
    keys = {Act.SAVE: "system.save", Act.EDIT: "system.edit_again", Act.DISCARD: "system.discard"}
    styles = {Act.SAVE: discord.ButtonStyle.primary}
    return view_of(
        *(
            button(
                Press.PROMPT,
                f"{act}:{scope}",
                render(phrase(keys[act]), locale),
                styles.get(act, discord.ButtonStyle.secondary),
            )
            for act in Act
            if can_save or act is not Act.SAVE
        )
    )


def draft_embed(text: str) -> discord.Embed:
    """Return a draft as it stands in its preview."""
    return discord.Embed(description=text)


def draft_of(message: discord.Message | None) -> str:
    """Return the draft that a preview shows, nothing where it shows none."""
    embeds = [] if message is None else message.embeds
    return (embeds[0].description or "") if embeds else ""
