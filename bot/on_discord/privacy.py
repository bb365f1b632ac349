"""`/privacy`, `/opt-out`, `/opt-in`, `/export-data` and `/forget-me`: people and their own data."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import discord
from discord import app_commands

from bot.conversation.service import ChatService
from bot.conversation.talk import MAX_AGE, MAX_MESSAGES
from bot.errors import NotAllowedError
from bot.fleet.fleet import Fleet, Kind
from bot.language.phrases import Phrase, phrase, render
from bot.on_discord.buttons import Press, button, view_of
from bot.on_discord.interactions import acknowledge, answering, reporting, say, show_instead
from bot.on_discord.origins import Interaction
from bot.privacy import Keeping, Privacy, fitting, to_json

Listens = Callable[[int | None], Awaitable[bool]]
MAX_FILE_BYTES = 8 * 2**20
"""Less than Discord takes everywhere."""


def privacy_commands(
    chat: ChatService, privacy: Privacy, listens: Listens, fleet: Fleet
) -> list[app_commands.Command[Any, ..., None]]:
    """Return the commands. `listens`: whether we read in a server what is not for us."""
    people = privacy.people

    @app_commands.command(name="privacy", description="What I keep about you, where and for how long")
    async def policy(interaction: Interaction) -> None:
        async with reporting(interaction):
            reads_along = await listens(interaction.guild_id)
            keeping, erases = privacy.sweeper.keeping, privacy.erases
            await say(interaction, *policy_lines(keeping, reads_along=reads_along, erases=erases))

    @app_commands.command(name="opt-out", description="Tell me never to answer you or keep anything of yours")
    async def opt_out(interaction: Interaction) -> None:
        async with answering(interaction):
            is_new = await people.opt_out(interaction.user.id)
            await chat.drop_person(interaction.user.id)
            fleet.tell_soon(Kind.OPTED_OUT, interaction.user.id)
            await say(interaction, phrase("opt.out") if is_new else phrase("opt.out_already"))

    @app_commands.command(name="opt-in", description="Let me answer you again after /opt-out")
    async def opt_in(interaction: Interaction) -> None:
        async with answering(interaction):
            was_out = await people.opt_in(interaction.user.id)
            await say(interaction, phrase("opt.in") if was_out else phrase("opt.in_already"))

    @app_commands.command(name="export-data", description="Get a file with everything I keep about you")
    async def export_data(interaction: Interaction) -> None:
        async with answering(interaction):
            data = await people.kept(interaction.user.id)
            content = await asyncio.to_thread(to_json, interaction.user.id, data, at=datetime.now(UTC))
            found = await asyncio.to_thread(fitting, "llamacord-data.json", content, MAX_FILE_BYTES)
            if found is None:
                await say(interaction, phrase("export.too_long"))
                return
            name, packed = found
            file = discord.File(io.BytesIO(packed), filename=name)
            await say(interaction, phrase("export.done", num=len(data.questions)), file=file)

    @app_commands.command(name="forget-me", description="Delete everything I keep about you, everywhere")
    async def forget_me(interaction: Interaction) -> None:
        view = forget_view(interaction.user.id, interaction.locale)
        await say(interaction, phrase("forget_me.confirm"), view=view)

    return [policy, opt_out, opt_in, export_data, forget_me]


def policy_lines(keeping: Keeping, *, reads_along: bool, erases: bool = True) -> list[Phrase]:
    """Return what `/privacy` says. Pure."""
    days, hours = keeping.retention_days, int(MAX_AGE.total_seconds()) // 3600
    return [
        phrase("privacy.what"),
        *([phrase("privacy.reads_along", messages=MAX_MESSAGES, hours=hours)] if reads_along else []),
        phrase("privacy.where") if erases else phrase("privacy.where_server"),
        phrase("privacy.until_deleted") if not days else phrase("privacy.days", num=days),
        phrase("privacy.gone", num=keeping.grace_days),
        phrase("privacy.rights"),
    ]


def forget_view(user_id: int, locale: object) -> discord.ui.View:
    """Return the button that confirms `/forget-me`."""
    label = render(phrase("forget_me.button"), locale)
    return view_of(button(Press.FORGET, user_id, label, discord.ButtonStyle.danger))


class PersonForgetting:
    """Carries out the confirmation of `/forget-me`."""

    def __init__(self, chat: ChatService, privacy: Privacy, fleet: Fleet) -> None:
        self._chat = chat
        self._privacy = privacy
        self._fleet = fleet

    async def forget(self, interaction: Interaction, user_id: int) -> None:
        """End the person's answers, delete everything of theirs, and put how much that was in the place of
        the question and its button.
        """
        async with reporting(interaction):
            if interaction.user.id != user_id:
                raise NotAllowedError(phrase("forget_me.not_yours"))
            await acknowledge(interaction)
            await self._fleet.tell(Kind.FORGOTTEN, user_id)
            await self._chat.drop_person(user_id)
            forgotten = await self._privacy.people.forget(user_id)
            await self._fleet.tell(Kind.FORGOTTEN, user_id)
            self._chat.reread()
            await self._privacy.purging.drop_caches()
            receipt = phrase(
                "forget_me.receipt",
                questions=phrase("counts.questions", num=forgotten.num_questions),
                answers=phrase("counts.answers", num=forgotten.num_answers),
                conversations=phrase("counts.conversations", num=forgotten.num_conversations),
            )
            await show_instead(interaction, receipt)
