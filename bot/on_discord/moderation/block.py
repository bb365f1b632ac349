"""`/block`, `/unblock` and `/blocked`: whom the bot does not answer on this server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import discord
from discord import app_commands

from bot.conversation.jobs import StopReason
from bot.conversation.service import ChatService
from bot.errors import NotAllowedError
from bot.language.phrases import phrase
from bot.on_discord.interactions import acknowledge, check_moderator, reporting, say
from bot.on_discord.origins import Interaction
from bot.servers.moderation import Moderation
from bot.servers.servers import Notice, NoticeKind

MAX_LISTED = 20
Person = discord.Member | discord.User


def block_commands(chat: ChatService, moderation: Moderation) -> list[app_commands.Command[Any, ..., None]]:
    """Return `/block`, `/unblock` and `/blocked`."""
    blocks = moderation.blocks

    @app_commands.command(name="block", description="Stop answering someone on this server (moderators)")
    @app_commands.describe(user="Who to stop answering")
    @app_commands.default_permissions(manage_messages=True)
    @app_commands.guild_only()
    async def block(interaction: Interaction, user: discord.User) -> None:
        async with reporting(interaction):
            guild_id = _guild_of(interaction)
            _check_blockable(interaction, user)
            await acknowledge(interaction)
            is_new = await blocks.add(guild_id, user.id, by_user_id=interaction.user.id, at=datetime.now(UTC))
            await chat.drop_person(user.id, StopReason.BLOCKED, guild_id=guild_id)
            if is_new:
                _post(interaction, NoticeKind.BLOCKED, user)
            await say(interaction, phrase("block.done" if is_new else "block.already", user=user.mention))

    @app_commands.command(name="unblock", description="Answer someone again on this server (moderators)")
    @app_commands.describe(user="Who to answer again; use the id of someone who has left")
    @app_commands.default_permissions(manage_messages=True)
    @app_commands.guild_only()
    async def unblock(interaction: Interaction, user: discord.User) -> None:
        async with reporting(interaction):
            guild_id = _guild_of(interaction)
            await acknowledge(interaction)
            was_blocked = await blocks.remove(guild_id, user.id)
            if was_blocked:
                _post(interaction, NoticeKind.UNBLOCKED, user)
            await say(interaction, phrase("block.undone" if was_blocked else "block.not", user=user.mention))

    @app_commands.command(name="blocked", description="Show who is blocked here, by whom and since when")
    @app_commands.default_permissions(manage_messages=True)
    @app_commands.guild_only()
    async def blocked(interaction: Interaction) -> None:
        async with reporting(interaction):
            guild_id = _guild_of(interaction)
            await acknowledge(interaction)
            lines = [
                phrase(
                    "block.line",
                    user=f"<@{one.user_id}>",
                    by=f"<@{one.by_user_id}>",
                    since=discord.utils.format_dt(one.blocked_at, "d"),
                )
                for one in await blocks.newest(guild_id, MAX_LISTED)
            ]
            await say(interaction, *(lines or [phrase("block.nobody")]))

    def _post(interaction: Interaction, kind: NoticeKind, user: Person) -> None:
        moderation.notices.post(
            Notice(_guild_of(interaction), kind, by_user_id=interaction.user.id, about_user_id=user.id)
        )

    return [block, unblock, blocked]


def _guild_of(interaction: Interaction) -> int:
    """Return the server. Raises `NotAllowedError` outside of one, or for who does not moderate."""
    check_moderator(interaction)
    if interaction.guild_id is None:
        raise NotAllowedError(phrase("moderation.only_in_servers"))
    return interaction.guild_id


def _check_blockable(interaction: Interaction, user: Person) -> None:
    """Raise `NotAllowedError` for oneself, for bots and for moderators."""
    is_moderator = isinstance(user, discord.Member) and user.guild_permissions.manage_messages
    if user.id == interaction.user.id or user.bot or is_moderator:
        raise NotAllowedError(phrase("block.refused"))
