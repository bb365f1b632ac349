"""`/settings` and `/model`: how answers are made in a conversation, and by which model for everybody.

Knows nothing of how values are checked, nor of how a model is loaded.
"""

from __future__ import annotations

from discord import app_commands

from bot.conversation.model_switch import ModelSwitch, mark_of
from bot.conversation.preferences import Preferences
from bot.conversation.system_prompts import SystemPrompts
from bot.errors import NotAllowedError
from bot.fleet.fleet import Fleet
from bot.language.phrases import phrase
from bot.on_discord.interactions import (
    acknowledge,
    answering,
    check_manager,
    check_moderator,
    moderated,
    reporting,
    say,
)
from bot.on_discord.origins import Interaction, conversation_of
from bot.parameters import ANSWER_PRESETS, PARAMETERS, find_parameter
from bot.servers.servers import Servers

_PRESETS = [app_commands.Choice(name=name, value=name) for name in ANSWER_PRESETS]
_NAMES = [app_commands.Choice(name=name, value=name) for name in PARAMETERS]


class SettingsCommands(app_commands.Group):
    """`/settings`: how answers are made in this conversation."""

    def __init__(self, preferences: Preferences, prompts: SystemPrompts, servers: Servers) -> None:
        super().__init__(name="settings", description="How answers are made here")
        self._preferences = preferences
        self._prompts = prompts
        self._servers = servers

    @app_commands.command(name="show", description="Show all settings of this conversation")
    async def show(self, interaction: Interaction) -> None:
        """Show every parameter, what the system prompt takes, and where each comes from."""
        async with answering(interaction):
            ref = conversation_of(interaction)
            lines = await self._preferences.describe(ref)
            prompt, cost = await self._prompts.read(ref), await self._prompts.cost(ref)
            key, tokens = "settings.system_prompt", cost.num_tokens
            about_prompt = phrase(key, origin=prompt.origin, tokens=tokens, allowed=cost.allowed)
            await say(interaction, *lines, about_prompt)

    @app_commands.command(name="set", description="Change a setting of this conversation (moderators)")
    @app_commands.describe(name="Which setting", value="Its new value: a number, or on or off")
    @app_commands.choices(name=_NAMES)
    async def set(self, interaction: Interaction, name: str, value: app_commands.Range[str, 1, 32]) -> None:
        """Change one parameter."""
        async with reporting(interaction):
            ref = await moderated(interaction)
            name, new = await self._preferences.set(ref, name, value, by_user_id=interaction.user.id)
            shown = find_parameter(name).format(new)
            await say(interaction, phrase("settings.changed", name=name, value=shown))

    @app_commands.command(name="preset", description="Choose a ready-made style of answers (moderators)")
    @app_commands.describe(name="precise, balanced or creative")
    @app_commands.choices(name=_PRESETS)
    async def preset(self, interaction: Interaction, name: str) -> None:
        """Set the parameters of a preset."""
        async with reporting(interaction):
            ref = await moderated(interaction)
            await self._preferences.set_answer_preset(ref, name, by_user_id=interaction.user.id)
            await say(interaction, phrase("settings.preset_holds", name=name))

    @app_commands.command(name="server", description="Set a default for this whole server (Manage Server)")
    @app_commands.describe(name="Which setting", value="Its value; leave it out to go back to mine")
    @app_commands.choices(name=_NAMES)
    async def server(
        self, interaction: Interaction, name: str, value: app_commands.Range[str, 1, 32] | None = None
    ) -> None:
        """Change what holds in all conversations of a server that set nothing themselves."""
        async with reporting(interaction):
            guild_id = check_manager(interaction)
            await acknowledge(interaction)
            name = await self._preferences.set_for_server(
                self._servers, guild_id, name, value, by_user_id=interaction.user.id
            )
            key = "settings.server_changed" if value is not None else "settings.server_cleared"
            await say(interaction, phrase(key, name=name, value=value or ""))

    @app_commands.command(name="reset", description="Go back to the defaults (moderators)")
    @app_commands.describe(name="Which setting; leave it out for all of them")
    @app_commands.choices(name=_NAMES)
    async def reset(self, interaction: Interaction, name: str | None = None) -> None:
        """Go back to the default of one parameter, or of all."""
        async with reporting(interaction):
            ref = await moderated(interaction)
            num_changed = await self._preferences.reset(ref, name)
            nothing = phrase("settings.nothing_changed")
            await say(interaction, phrase("settings.back", num=num_changed) if num_changed else nothing)


class ModelCommands(app_commands.Group):
    """`/model`: which model answers. Switching is for operators: it is for everybody."""

    def __init__(self, switch: ModelSwitch, operator_ids: frozenset[int], fleet: Fleet) -> None:
        super().__init__(name="model", description="Which model answers")
        self._switch = switch
        self._operator_ids = operator_ids
        self._fleet = fleet

    @app_commands.command(name="show", description="Show the model and the others there are (moderators)")
    async def show(self, interaction: Interaction) -> None:
        """List the models."""
        async with reporting(interaction):
            if interaction.user.id not in self._operator_ids:
                check_moderator(interaction)
            await acknowledge(interaction)
            names = ", ".join(f"`{name}`" for name in await self._switch.names())
            key = "model.shown" if self._switch.is_answering else "model.shown_lost"
            await say(interaction, phrase(key, current=self._switch.name, names=names))

    @app_commands.command(name="use", description="Switch everyone to another model (whoever runs me)")
    @app_commands.describe(name="Which model")
    async def use(self, interaction: Interaction, name: app_commands.Range[str, 1, 100]) -> None:
        """Switch."""
        async with reporting(interaction):
            if interaction.user.id not in self._operator_ids:
                raise NotAllowedError(phrase("model.not_an_operator"))
            await acknowledge(interaction)
            is_same = name == self._switch.name and self._switch.is_answering
            if not (is_same and self._fleet.has_others):  # others may have another one
                await self._switch.use(name)
            await self._fleet.choose_model(mark_of(name))
            others = [phrase("model.others_follow")] if self._fleet.has_others else []
            await say(interaction, phrase("model.switched", name=name), *others)

    @use.autocomplete("name")
    async def _names(self, interaction: Interaction, typed: str) -> list[app_commands.Choice[str]]:
        if interaction.user.id not in self._operator_ids:
            return []
        names = [name for name in await self._switch.names() if typed.casefold() in name.casefold()]
        return [app_commands.Choice(name=name[:100], value=name[:100]) for name in names[:25]]
