"""A system prompt in the making: the form it is written in, and the preview with what can be done with it.

The draft stands in the preview itself, whose author we are, so nothing of it is kept in memory and its
buttons outlive a restart. Knows nothing of who may set a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, Self, cast

import discord

from bot.language.phrases import phrase, render
from bot.on_discord.interactions import Interaction, data_of
from bot.on_discord.server_panel.forms import form_values
from bot.parameters import MAX_SYSTEM_PROMPT_CHARS

_PREFIX = "llamacord:prompt:"
_FORM = re.compile(rf"{_PREFIX}form:(?P<scope>conversation|server)")
_FIELD = "text"


class Scope(StrEnum):
    """What a draft is for. The values are part of messages on Discord: they stay as they are."""

    CONVERSATION = "conversation"
    SERVER = "server"


class Act(StrEnum):
    """What is done with a draft. The values stay as they are, too."""

    SAVE = "save"
    EDIT = "edit"
    DISCARD = "discard"


class PromptControls(Protocol):
    """What the buttons do. Does not raise."""

    async def press(self, interaction: Interaction, act: Act, scope: Scope) -> None:
        """Act on a draft."""


class _HasEditor(Protocol):
    prompt_editor: PromptControls


class PromptButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=rf"{_PREFIX}(?P<act>{'|'.join(Act)}):(?P<scope>{'|'.join(Scope)})",
):
    """A button below a preview."""

    def __init__(self, act: Act, scope: Scope, label: str = "…") -> None:
        is_save = act is Act.SAVE
        style = discord.ButtonStyle.primary if is_save else discord.ButtonStyle.secondary
        super().__init__(
            discord.ui.Button(label=label[:80], style=style, custom_id=f"{_PREFIX}{act}:{scope}")
        )
        self._act, self._scope = act, scope

    @classmethod
    async def from_custom_id(
        cls,
        interaction: Interaction,  # noqa: ARG003 - discord.py's signature
        item: discord.ui.Item[discord.ui.View],  # noqa: ARG003
        match: re.Match[str],
    ) -> Self:
        """Make the button that was pressed."""
        return cls(Act(match["act"]), Scope(match["scope"]))

    async def callback(self, interaction: Interaction) -> None:
        """Pass the press on."""
        await cast("_HasEditor", interaction.client).prompt_editor.press(interaction, self._act, self._scope)


def draft_form(scope: Scope, title: str, cost: str, text: str) -> discord.ui.Modal:
    """Return the form; Discord counts the characters while one types. A server's may be left empty."""
    modal = discord.ui.Modal(title=title[:45], custom_id=f"{_PREFIX}form:{scope}", timeout=600.0)
    modal.add_item(
        discord.ui.TextInput[discord.ui.Modal](
            label=cost[:45],
            custom_id=_FIELD,
            default=text[:MAX_SYSTEM_PROMPT_CHARS],
            style=discord.TextStyle.paragraph,
            max_length=MAX_SYSTEM_PROMPT_CHARS,
            required=scope is Scope.CONVERSATION,
        )
    )
    return modal


def draft_view(scope: Scope, locale: object, *, can_save: bool) -> discord.ui.View:
    """Return the buttons below a preview."""
    say: Callable[[str], str] = lambda key: render(phrase(key), locale)  # noqa: E731
    view = discord.ui.View(timeout=None)
    if can_save:
        view.add_item(PromptButton(Act.SAVE, scope, say("system.save")))
    view.add_item(PromptButton(Act.EDIT, scope, say("system.edit_again")))
    view.add_item(PromptButton(Act.DISCARD, scope, say("system.discard")))
    return view


def draft_embed(text: str) -> discord.Embed:
    """Return a draft as it stands in its preview."""
    return discord.Embed(description=text)


def draft_of(message: discord.Message | None) -> str:
    """Return the draft that a preview shows, nothing where it shows none."""
    embeds = [] if message is None else message.embeds
    return (embeds[0].description or "") if embeds else ""


def is_prompt_form(interaction: Interaction) -> bool:
    """Tell whether an interaction is this form, sent off."""
    return interaction.type is discord.InteractionType.modal_submit and _form(interaction) is not None


def written_in(interaction: Interaction) -> tuple[Scope, str]:
    """Return what the form is for, and what was written in it."""
    match = _form(interaction)
    scope = Scope.CONVERSATION if match is None else Scope(match["scope"])
    return scope, form_values(data_of(interaction)).get(_FIELD, "").strip()


def _form(interaction: Interaction) -> re.Match[str] | None:
    return _FORM.fullmatch(str(data_of(interaction).get("custom_id", "")))
