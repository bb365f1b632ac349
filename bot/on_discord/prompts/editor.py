"""Edits a system prompt: a form, then a preview with what it costs, then Save, Edit again or Discard.

Owns who may do it: moderators for a conversation, managers for a server. Nothing is set before Save.
"""

from __future__ import annotations

from bot.conversation.system_prompts import Place, PromptCost, ServerRef, SystemPrompts
from bot.errors import ChatError, is_expected, sentence_for
from bot.language.phrases import Phrase, phrase, render
from bot.on_discord.interactions import (
    Interaction,
    acknowledge,
    acknowledge_with,
    check_manager,
    check_moderator,
    conversation_of,
    reporting,
    say,
    show_form,
    show_instead,
)
from bot.on_discord.prompts.drafts import (
    Act,
    Scope,
    draft_embed,
    draft_form,
    draft_of,
    draft_view,
    written_in,
)
from engine.errors import PromptError


class PromptEditor:
    """Carries out what is done with drafts. Satisfies `PromptControls`."""

    def __init__(self, prompts: SystemPrompts) -> None:
        self._prompts = prompts

    async def open(self, interaction: Interaction, scope: Scope) -> None:
        """Show the form with what holds now. Raises what is told to the person who acts."""
        place = _place(interaction, scope)
        prompt = await self._prompts.read(place)
        text = prompt.text if prompt.own is None and not prompt.is_guided else prompt.own or ""
        if scope is Scope.SERVER and prompt.own is None:
            text = ""
        await self._show_form(interaction, scope, await self._prompts.cost(place), text)

    async def submit(self, interaction: Interaction) -> None:
        """Show the preview of what was written."""
        scope, text = written_in(interaction)
        async with reporting(interaction):
            place = _place(interaction, scope)
            if interaction.message is None:
                await acknowledge_with(interaction, is_private=True)
            else:
                await acknowledge(interaction)
            if scope is Scope.SERVER and not text:
                await self._clear(interaction, place)
            else:
                await self._preview(interaction, scope, place, text)

    async def press(self, interaction: Interaction, act: Act, scope: Scope) -> None:
        """Act on the draft of a preview."""
        async with reporting(interaction):
            place, text = _place(interaction, scope), draft_of(interaction.message)
            if act is Act.EDIT:
                await self._show_form(interaction, scope, await self._prompts.cost(place), text)
                return
            await acknowledge(interaction)
            if act is Act.SAVE:
                await self._save(interaction, scope, place, text)
            else:
                await show_instead(interaction, phrase("system.discarded"))

    async def _show_form(self, interaction: Interaction, scope: Scope, cost: PromptCost, text: str) -> None:
        locale = interaction.locale
        shown = phrase("system.form_cost", tokens=cost.num_tokens, allowed=cost.allowed)
        title = phrase("system.form_title" if scope is Scope.CONVERSATION else "system.form_title_server")
        await show_form(interaction, draft_form(scope, render(title, locale), render(shown, locale), text))

    async def _preview(self, interaction: Interaction, scope: Scope, place: Place, text: str) -> None:
        """Show a draft with what it costs, or why it cannot be saved."""
        can_save = True
        try:
            line: str = _costs(text, await self._prompts.check(place, text))
        except Exception as error:
            if not is_expected(error):
                raise
            line, can_save = sentence_for(error), False
        embed = draft_embed(text) if text else None
        view = draft_view(scope, interaction.locale, can_save=can_save)
        show = say if interaction.message is None else show_instead
        await show(interaction, line, view=view, embed=embed)

    async def _save(self, interaction: Interaction, scope: Scope, place: Place, text: str) -> None:
        """Set what a preview shows; where that is not possible any more, show why."""
        try:
            cost = await self._prompts.set(place, text, by_user_id=interaction.user.id)
        except (ChatError, PromptError):
            await self._preview(interaction, scope, place, text)
            return
        key = "system.edited" if scope is Scope.CONVERSATION else "system.edited_for_server"
        said = phrase(key, characters=len(text), tokens=cost.num_tokens, allowed=cost.allowed)
        await show_instead(interaction, said)

    async def _clear(self, interaction: Interaction, place: Place) -> None:
        was_set = await self._prompts.clear(place, by_user_id=interaction.user.id)
        said = phrase("system.server_cleared") if was_set else phrase("system.was_default")
        await (say if interaction.message is None else show_instead)(interaction, said)


def _place(interaction: Interaction, scope: Scope) -> Place:
    """Return what a draft is for. Raises `NotAllowedError` for who may not set it."""
    if scope is Scope.SERVER:
        return ServerRef(check_manager(interaction))
    check_moderator(interaction)
    return conversation_of(interaction)


def _costs(text: str, cost: PromptCost) -> Phrase:
    return phrase(
        "system.preview",
        characters=len(text),
        tokens=cost.num_tokens,
        allowed=cost.allowed,
        left=cost.num_left,
        answer=cost.num_answer,
    )
