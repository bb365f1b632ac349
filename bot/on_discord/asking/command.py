"""`/ask`, and Ask about this in a message's menu: also for people who installed the bot for themselves.

Knows nothing of where an answer goes.
"""

from __future__ import annotations

from typing import Any

import discord
from discord import app_commands

from bot.conversation.mentions import Bot
from bot.language.phrases import phrase, render
from bot.on_discord.asking.asking import Asking, Request
from bot.on_discord.asking.incoming import bot_of
from bot.on_discord.asking.questions import quoted
from bot.on_discord.interactions import Interaction, reporting, say, show_form
from bot.parameters import PARAMETERS
from storage.conversations import Quote

MAX_PROMPT_CHARS = 4000
_TEMPERATURE, _LENGTH = PARAMETERS["temperature"].allowed, PARAMETERS["max_new_tokens"].allowed
_everywhere = app_commands.allowed_contexts(guilds=True, dms=True, private_channels=True)
_for_everybody = app_commands.allowed_installs(guilds=True, users=True)


def ask_commands(asking: Asking) -> list[app_commands.Command[Any, ..., None] | app_commands.ContextMenu]:
    """Return `/ask` and the entry in the menu of messages."""

    @app_commands.command(name="ask", description="Ask me something")
    @app_commands.describe(
        prompt="Your question",
        private="Only you see the answer, and I do not remember it",
        file="A text file that belongs to the question",
        temperature="How adventurous this answer is; 0 takes the likeliest",
        max_new_tokens="Longest answer, in tokens",
    )
    @_everywhere
    @_for_everybody
    async def ask(
        interaction: Interaction,
        prompt: app_commands.Range[str, 1, MAX_PROMPT_CHARS],
        private: bool = False,
        file: discord.Attachment | None = None,
        temperature: app_commands.Range[float, _TEMPERATURE.low, _TEMPERATURE.high] | None = None,
        max_new_tokens: app_commands.Range[int, int(_LENGTH.low), int(_LENGTH.high)] | None = None,
    ) -> None:
        given = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        overrides = {name: value for name, value in given.items() if value is not None}
        files = () if file is None else (file,)
        await asking.take(interaction, Request(prompt, private, None, files, overrides))

    @app_commands.context_menu(name="Ask about this")
    @_everywhere
    @_for_everybody
    async def ask_about(interaction: Interaction, message: discord.Message) -> None:
        async with reporting(interaction):
            quote = quoted(message, _bot_at(interaction))
            if not quote.content:
                await say(interaction, phrase("ask.nothing_there"))
                return
            await show_form(interaction, AboutForm(asking, quote, str(interaction.locale)))

    return [ask, ask_about]


class AboutForm(discord.ui.Modal):
    """Asks what one wants to know about a message."""

    def __init__(self, asking: Asking, quote: Quote, locale: str) -> None:
        super().__init__(title=render(phrase("ask.form_title"), locale))
        self._asking = asking
        self._quote = quote
        self._prompt: discord.ui.TextInput[AboutForm] = discord.ui.TextInput(
            label=render(phrase("ask.form_question"), locale),
            default=render(phrase("ask.form_default"), locale),
            style=discord.TextStyle.paragraph,
            max_length=MAX_PROMPT_CHARS // 2,
        )
        self.add_item(self._prompt)

    async def on_submit(self, interaction: Interaction) -> None:
        """Ask it."""
        await self._asking.take(interaction, Request(self._prompt.value, quote=self._quote))


def _bot_at(interaction: Interaction) -> Bot:
    user = interaction.client.user
    return Bot(interaction.application_id, "") if user is None else bot_of(user, interaction.guild)
