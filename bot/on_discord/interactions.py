"""Answering interactions in time, always, and pinging nobody; and what is asked of whoever acts.

Knows nothing of commands, buttons and forms.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp
import discord

from bot.errors import ChatError, NotAllowedError, is_expected, sentence_for
from bot.language.phrases import phrase, render
from bot.on_discord.origins import Interaction, actor_of, conversation_of
from bot.origin import may_moderate
from bot.tasks import Tasks
from storage.conversations import ConversationRef

_log = logging.getLogger(__name__)

SILENT = discord.AllowedMentions.none()
DISCORD_FAILURES = (discord.DiscordException, aiohttp.ClientError, OSError)
"""What is raised where Discord does not do what was asked, or cannot be reached."""
PATIENCE_S = 2.0
"""How long an interaction may go without a first answer; Discord gives it up after 3 seconds."""
GRACE_S = 1.5
"""Whoever knows a form answers it sooner, and Discord waits for 3 seconds."""
_MAX_SHOWN = 1800
_ACKNOWLEDGED = 40060
_MESSAGES = {
    discord.InteractionResponseType.channel_message,
    discord.InteractionResponseType.deferred_channel_message,
}


async def say(
    interaction: Interaction,
    *lines: str,
    view: discord.ui.View | None = None,
    file: discord.File = discord.utils.MISSING,
    embed: discord.Embed | None = None,
) -> None:
    """Answer in the language of the person who acts, so that only they see it. Never raises."""
    text = "\n".join(render(line, interaction.locale) for line in lines)
    shown = view or discord.utils.MISSING
    embeds = [] if embed is None else [embed]

    async def send(*, is_known: bool) -> None:
        if file is not discord.utils.MISSING:
            file.reset()
        if not is_known:
            await interaction.response.send_message(
                text, ephemeral=True, allowed_mentions=SILENT, view=shown, file=file, embeds=embeds
            )
        elif _has_own_message(interaction):
            files = [] if file is discord.utils.MISSING else [file]
            await interaction.edit_original_response(
                content=text, allowed_mentions=SILENT, view=view, attachments=files, embeds=embeds
            )
        else:
            await interaction.followup.send(
                text, ephemeral=True, allowed_mentions=SILENT, view=shown, file=file, embeds=embeds
            )

    await _attempt(interaction, send)


async def show_instead(
    interaction: Interaction,
    *lines: str,
    view: discord.ui.View | None = None,
    embed: discord.Embed | None = None,
) -> None:
    """Put this in the place of the message whose button or menu was used. Never raises."""
    text = "\n".join(render(line, interaction.locale) for line in lines)

    async def edit(*, is_known: bool) -> None:
        if is_known:
            await interaction.edit_original_response(
                content=text, view=view, embed=embed, allowed_mentions=SILENT
            )
        else:
            await interaction.response.edit_message(
                content=text, view=view, embed=embed, allowed_mentions=SILENT
            )

    await _attempt(interaction, edit)


async def show_form(interaction: Interaction, form: discord.ui.Modal) -> None:
    """Show a form, which only a first answer can. Raises `ChatError` where it is too late for one."""
    if interaction.response.is_done():
        raise ChatError(phrase("errors.not_taken"))
    await interaction.response.send_modal(form)


def text_file(name: str, text: str) -> discord.File:
    """Return a text as a file to send."""
    return discord.File(io.BytesIO(text.encode("utf-8", "replace")), filename=name)


async def acknowledge(interaction: Interaction) -> None:
    """Tell Discord within its 3 seconds that an answer follows. Never raises."""

    async def defer(*, is_known: bool) -> None:
        if not is_known:
            is_command = interaction.type is discord.InteractionType.application_command
            await interaction.response.defer(ephemeral=is_command)

    await _attempt(interaction, defer)


async def acknowledge_with(interaction: Interaction, *, is_private: bool) -> None:
    """Tell Discord that an answer follows, for everybody or for the person who acts. Never raises."""

    async def defer(*, is_known: bool) -> None:
        if not is_known:
            await interaction.response.defer(ephemeral=is_private, thinking=True)

    await _attempt(interaction, defer)


@asynccontextmanager
async def reporting(interaction: Interaction) -> AsyncIterator[None]:
    """Turn any exception of the body into a sentence for the person who acts.

    A body that takes its time is acknowledged before Discord gives the interaction up.
    """
    async with Tasks() as tasks:
        tasks.start(_acknowledge_in_time(interaction), "acknowledging in time")
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the edge: an interaction always gets an answer
            await say(interaction, sentence_of(error))


@asynccontextmanager
async def answering(interaction: Interaction) -> AsyncIterator[None]:
    """Do as `reporting` does, and tell Discord at once that an answer follows."""
    async with reporting(interaction):
        await acknowledge(interaction)
        yield


def sentence_of(error: Exception) -> str:
    """Return what the person who acts is told of an exception, and log a fault."""
    if isinstance(error, DISCORD_FAILURES):
        _log.warning("Discord did not take the answer to an interaction: %s", _kind_of(error))
        return phrase("errors.not_taken")
    if not is_expected(error):
        _log.error("An interaction failed", exc_info=error)
    return sentence_for(error)


def check_moderator(interaction: Interaction) -> None:
    """Raise `NotAllowedError` unless the person who acts may moderate here."""
    if not may_moderate(actor_of(interaction)):
        raise NotAllowedError(phrase("errors.not_a_moderator"))


async def moderated(interaction: Interaction) -> ConversationRef:
    """Return the conversation after telling Discord that an answer follows. Raises `NotAllowedError`."""
    check_moderator(interaction)
    await acknowledge(interaction)
    return conversation_of(interaction)


def check_manager(interaction: Interaction) -> int:
    """Return the server. Raises `NotAllowedError` for anybody but those who manage it."""
    if interaction.guild_id is None:
        raise NotAllowedError(phrase("moderation.only_in_servers"))
    if not interaction.permissions.manage_guild:
        raise NotAllowedError(phrase("moderation.not_a_manager"))
    return interaction.guild_id


def data_of(interaction: Interaction) -> Mapping[str, Any]:
    """Return what Discord sent with the interaction, as it sent it."""
    data: Any = interaction.data
    return data or {}


def typed_in(interaction: Interaction) -> dict[str, str]:
    """Return what was typed in the fields of a form, by their ids, whatever the form looks like."""
    return dict(_fields(data_of(interaction)))


def _fields(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(part.get("value"), str):
        yield str(part.get("custom_id")), part["value"]
    for inner in (*part.get("components", ()), *([part["component"]] if "component" in part else [])):
        yield from _fields(inner)


async def answer_old_form(interaction: Interaction) -> None:
    """Say that a form is too old, unless it has been answered."""
    await asyncio.sleep(GRACE_S)
    if not interaction.response.is_done():
        typed = "\n".join(typed_in(interaction).values())
        shown = discord.utils.escape_markdown(typed[: _MAX_SHOWN // 2])
        await say(interaction, phrase("errors.old_form"), shown)


async def _acknowledge_in_time(interaction: Interaction) -> None:
    await asyncio.sleep(PATIENCE_S)
    await acknowledge(interaction)


class _Act(Protocol):
    async def __call__(self, *, is_known: bool) -> object: ...


async def _attempt(interaction: Interaction, act: _Act) -> None:
    """Do what answers an interaction, a second time if need be: Discord's faults are mostly short ones.

    `is_known` tells `act` whether Discord has had a first answer, also one whose receipt we never got.
    """
    is_known = interaction.response.is_done()
    for _ in range(2):
        try:
            await act(is_known=is_known)
        except DISCORD_FAILURES as error:
            _log.warning("Discord did not take what answers an interaction: %s", _kind_of(error))
            if isinstance(error, discord.NotFound):
                return
            is_known = interaction.response.is_done() or getattr(error, "code", 0) == _ACKNOWLEDGED
        else:
            return


def _has_own_message(interaction: Interaction) -> bool:
    """Tell whether the first answer is a message of this interaction, and not the one with the button."""
    if interaction.response.type is None:
        return interaction.type is discord.InteractionType.application_command
    return interaction.response.type in _MESSAGES


def _kind_of(error: Exception) -> str:
    if isinstance(error, discord.HTTPException):
        return f"status {error.status}, code {error.code}"
    return type(error).__name__
