"""`/system`, and how the prompt of a conversation or a server is edited: a form, then a preview, then Save.

The draft stands in the preview itself, whose author we are, so nothing of it is kept in memory and its
buttons outlive a restart.
"""

from __future__ import annotations

from enum import StrEnum

import discord
from discord import app_commands

from bot.conversation.system_prompts import Place, PromptCost, ServerRef, SystemPrompt, SystemPrompts
from bot.errors import ChatError, is_expected, sentence_for
from bot.language.phrases import Phrase, phrase, render
from bot.on_discord.buttons import Press, button, id_of, view_of
from bot.on_discord.interactions import (
    acknowledge,
    acknowledge_with,
    answering,
    check_manager,
    check_moderator,
    moderated,
    reporting,
    say,
    show_form,
    show_instead,
    typed_in,
)
from bot.on_discord.origins import Interaction, conversation_of
from bot.parameters import MAX_SYSTEM_PROMPT_CHARS
from engine.errors import PromptError
from engine.types import PRESETS

_PRESETS = [app_commands.Choice(name=name, value=name) for name in PRESETS]
_MAX_SHOWN = 1850
"""Characters of a system prompt, so that they fit in one message."""
_MAX_FILLED = 1200
"""Characters of one in a preview, beside what it costs."""
FIELD = "text"
"""The id of the form's field."""


class SystemCommands(app_commands.Group):
    """`/system`: the text that tells the model how to behave in this conversation."""

    def __init__(self, prompts: SystemPrompts, editor: PromptEditor) -> None:
        super().__init__(name="system", description="The system prompt of this conversation")
        self._prompts = prompts
        self._editor = editor

    @app_commands.command(name="show", description="Show the system prompt of this conversation")
    async def show(self, interaction: Interaction) -> None:
        """Show the prompt in force and where it comes from."""
        async with answering(interaction):
            prompt = await self._prompts.read(conversation_of(interaction))
            await say(interaction, *_shown(prompt))

    @app_commands.command(name="set", description="Change the system prompt here (moderators)")
    @app_commands.describe(text="What to tell the model before every conversation")
    async def set(
        self, interaction: Interaction, text: app_commands.Range[str, 1, MAX_SYSTEM_PROMPT_CHARS]
    ) -> None:
        """Change the prompt."""
        async with reporting(interaction):
            ref = await moderated(interaction)
            cost = await self._prompts.set(ref, text, by_user_id=interaction.user.id)
            await say(interaction, phrase("system.changed", num=cost.num_tokens))

    @app_commands.command(name="edit", description="Edit the system prompt in a form (moderators)")
    async def edit(self, interaction: Interaction) -> None:
        """Show the form, with what holds now."""
        async with reporting(interaction):
            await self._editor.open(interaction, Scope.CONVERSATION)

    @app_commands.command(name="preset", description="Use a system prompt with a name here (moderators)")
    @app_commands.describe(name="safe: Meta's safety guidance; none: no text")
    @app_commands.choices(name=_PRESETS)
    async def preset(self, interaction: Interaction, name: str) -> None:
        """Change the prompt to a preset."""
        async with reporting(interaction):
            ref = await moderated(interaction)
            cost = await self._prompts.set_preset(ref, name, by_user_id=interaction.user.id)
            await say(interaction, phrase("system.preset_holds", name=name, num=cost.num_tokens))

    @app_commands.command(name="clear", description="Go back to the default system prompt (moderators)")
    async def clear(self, interaction: Interaction) -> None:
        """Go back to the default."""
        async with reporting(interaction):
            ref = await moderated(interaction)
            was_own = await self._prompts.clear(ref, by_user_id=interaction.user.id)
            await say(interaction, phrase("system.cleared") if was_own else phrase("system.was_default"))


class PromptEditor:
    """Carries out what is done with drafts: a form, then a preview with what it costs, then Save.

    Owns who may do it: moderators for a conversation, managers for a server. Nothing is set before Save.
    """

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

    async def submit(self, interaction: Interaction, argument: str) -> None:
        """Show the preview of what was written."""
        scope = Scope(argument.removeprefix("form:"))
        text = typed_in(interaction).get(FIELD, "").strip()
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

    async def press(self, interaction: Interaction, argument: str) -> None:
        """Act on the draft of a preview."""
        act, scope = Act(argument.partition(":")[0]), Scope(argument.partition(":")[2])
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
            lines: list[str] = [_costs(text, await self._prompts.check(place, text))]
        except Exception as error:
            if not is_expected(error):
                raise
            lines, can_save = [sentence_for(error)], False
        if (filled := self._prompts.filled(place, text)) != text:
            lines += [phrase("system.preview_filled"), _quoted(filled, _MAX_FILLED)]
        embed = draft_embed(text) if text else None
        view = draft_view(scope, interaction.locale, can_save=can_save)
        show = say if interaction.message is None else show_instead
        await show(interaction, *lines, view=view, embed=embed)

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


def _shown(prompt: SystemPrompt) -> tuple[str, str]:
    """Return what `/system show` says: where the prompt comes from, and the text that can be changed here."""
    text = prompt.text if prompt.own is None else prompt.own
    cut = _quoted(text, _MAX_SHOWN) if text.strip() else phrase("system.none")
    if prompt.is_guided:
        return phrase("system.shown_guided", origin=prompt.origin), cut
    return phrase("system.shown", origin=prompt.origin), cut


def _quoted(text: str, max_chars: int) -> str:
    """Return `text` as it was written, cut."""
    quoted = discord.utils.escape_markdown(text)
    return quoted if len(quoted) <= max_chars else f"{quoted[:max_chars]}…"


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
