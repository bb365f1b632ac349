"""`/model`: which model answers, and which others there are. Switching is for operators: it is for everybody.

Knows nothing of how a model is loaded.
"""

from __future__ import annotations

from discord import app_commands

from bot.conversation.model_switch import ModelSwitch
from bot.errors import NotAllowedError
from bot.language.phrases import phrase
from bot.on_discord.interactions import Interaction, acknowledge, check_moderator, reporting, say


class ModelCommands(app_commands.Group):
    """`/model`: which model answers."""

    def __init__(self, switch: ModelSwitch, operator_ids: frozenset[int]) -> None:
        super().__init__(name="model", description="Which model answers")
        self._switch = switch
        self._operator_ids = operator_ids

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

    @app_commands.command(name="use", description="Let another model answer everybody (whoever runs me)")
    @app_commands.describe(name="Which model")
    async def use(self, interaction: Interaction, name: app_commands.Range[str, 1, 100]) -> None:
        """Switch."""
        async with reporting(interaction):
            if interaction.user.id not in self._operator_ids:
                raise NotAllowedError(phrase("model.not_an_operator"))
            await acknowledge(interaction)
            await self._switch.use(name)
            await say(interaction, phrase("model.switched", name=name))

    @use.autocomplete("name")
    async def _names(self, interaction: Interaction, typed: str) -> list[app_commands.Choice[str]]:
        if interaction.user.id not in self._operator_ids:
            return []
        names = [name for name in await self._switch.names() if typed.casefold() in name.casefold()]
        return [app_commands.Choice(name=name[:100], value=name[:100]) for name in names[:25]]
