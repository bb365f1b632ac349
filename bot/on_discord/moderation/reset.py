"""`/reset`: forget a conversation, and bring it back within ten minutes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from discord import app_commands

from bot.conversation.service import ChatService
from bot.errors import ChatError, NotAllowedError
from bot.language.phrases import phrase
from bot.on_discord.answers.buttons import undo_view
from bot.on_discord.interactions import (
    Interaction,
    acknowledge,
    check_moderator,
    conversation_of,
    reporting,
    say,
)
from bot.on_discord.moderation.controls import bring_back
from bot.servers.moderation import Moderation
from bot.servers.notices import Notice, NoticeKind
from storage.conversations import ConversationKind, ConversationRef
from storage.resets import Reset

Place = app_commands.AppCommandChannel | app_commands.AppCommandThread


def reset_command(chat: ChatService, moderation: Moderation) -> app_commands.Command[Any, ..., None]:
    """Return `/reset`."""

    @app_commands.command(name="reset", description="Forget a conversation (moderators)")
    @app_commands.describe(
        channel="Which conversation; this one if left out",
        undo="Bring back what was forgotten last, within 10 minutes",
    )
    @app_commands.default_permissions(manage_messages=True)
    async def reset(interaction: Interaction, channel: Place | None = None, undo: bool = False) -> None:
        async with reporting(interaction):
            ref = moderated_place(interaction, channel)
            await acknowledge(interaction)
            if undo:
                await _undo_newest(interaction, ref)
                return
            done = await chat.reset(ref, by_user_id=interaction.user.id, at=datetime.now(UTC))
            _post(interaction, done)
            view = undo_view(done.id, interaction.locale)
            await say(
                interaction,
                phrase("reset.done", num=done.num_messages),
                phrase("moderation.undo_hint"),
                view=view,
            )

    async def _undo_newest(interaction: Interaction, ref: ConversationRef) -> None:
        newest = await chat.conversations.newest_reset(await chat.conversations.open(ref))
        if newest is None:
            raise ChatError(phrase("moderation.nothing_to_undo"))
        await bring_back(interaction, chat, moderation, newest)

    def _post(interaction: Interaction, done: Reset) -> None:
        if done.guild_id is not None:
            moderation.notices.post(
                Notice(
                    done.guild_id,
                    NoticeKind.RESET,
                    by_user_id=interaction.user.id,
                    channel_id=done.channel_id,
                    num=done.num_messages,
                    reset_id=done.id,
                )
            )

    return reset


def moderated_place(interaction: Interaction, channel: Place | None) -> ConversationRef:
    """Return the conversation of `channel`, or of where the command was used.

    Raises `NotAllowedError` unless the person who acts moderates that very place, on this very server.
    """
    if channel is None or channel.id == interaction.channel_id:
        check_moderator(interaction)
        return conversation_of(interaction)
    if channel.guild_id != interaction.guild_id or not channel.permissions.manage_messages:
        raise NotAllowedError(phrase("errors.not_a_moderator"))
    is_thread = isinstance(channel, app_commands.AppCommandThread)
    kind = ConversationKind.THREAD if is_thread else ConversationKind.CHANNEL
    return ConversationRef(channel.id, kind, interaction.guild_id)
