"""`/reset` and its button: forget a conversation, and bring it back within ten minutes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import discord
from discord import app_commands

from bot.conversation.service import ChatService
from bot.errors import ChatError, NotAllowedError
from bot.language.phrases import phrase, render
from bot.on_discord.buttons import Press, button, view_of
from bot.on_discord.interactions import acknowledge, answering, check_moderator, reporting, say
from bot.on_discord.origins import Interaction, conversation_of
from bot.servers.moderation import Moderation
from bot.servers.servers import Notice, NoticeKind
from storage.conversations import ConversationKind, ConversationRef
from storage.errors import NotFoundError
from storage.resets import Reset

Place = app_commands.AppCommandChannel | app_commands.AppCommandThread


class Resets:
    """Carries out `/reset`, and the button that takes a reset back."""

    def __init__(self, chat: ChatService, moderation: Moderation) -> None:
        self._chat = chat
        self._moderation = moderation

    def command(self) -> app_commands.Command[Any, ..., None]:
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
                await (self._undo_newest if undo else self._reset)(interaction, ref)

        return reset

    async def undo(self, interaction: Interaction, reset_id: int) -> None:
        """Bring back what a reset put aside: the button. Its id counts only where the reset was."""
        async with answering(interaction):
            reset = await self._chat.conversations.find_reset(reset_id)
            if not _may_undo(interaction, reset):
                raise NotAllowedError(phrase("errors.not_a_moderator"))
            await self._bring_back(interaction, reset)

    async def _reset(self, interaction: Interaction, ref: ConversationRef) -> None:
        done = await self._chat.memory.reset(ref, by_user_id=interaction.user.id, at=datetime.now(UTC))
        self._post(NoticeKind.RESET, interaction, done, done.id)
        said = phrase("reset.done", num=done.num_messages), phrase("moderation.undo_hint")
        await say(interaction, *said, view=undo_view(done.id, interaction.locale))

    async def _undo_newest(self, interaction: Interaction, ref: ConversationRef) -> None:
        conversations = self._chat.conversations
        newest = await conversations.newest_reset(await conversations.open(ref))
        if newest is None:
            raise ChatError(phrase("moderation.nothing_to_undo"))
        await self._bring_back(interaction, newest)

    async def _bring_back(self, interaction: Interaction, reset: Reset) -> None:
        """Undo a reset and say so, or that it is too late."""
        try:
            done = await self._chat.memory.undo_reset(
                reset, by_user_id=interaction.user.id, at=datetime.now(UTC)
            )
        except NotFoundError:
            raise ChatError(phrase("moderation.too_late")) from None
        self._post(NoticeKind.RESET_UNDONE, interaction, done)
        await say(
            interaction, phrase("moderation.undone", count=phrase("counts.messages", num=done.num_messages))
        )

    def _post(
        self, kind: NoticeKind, interaction: Interaction, done: Reset, reset_id: int | None = None
    ) -> None:
        if done.guild_id is not None:
            self._moderation.notices.post(
                Notice(
                    done.guild_id,
                    kind,
                    by_user_id=interaction.user.id,
                    channel_id=done.channel_id,
                    num=done.num_messages,
                    reset_id=reset_id,
                )
            )


def undo_view(reset_id: int, locale: object) -> discord.ui.View:
    """Return the button below a reset."""
    return view_of(button(Press.UNDO_RESET, reset_id, render(phrase("moderation.undo"), locale)))


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


def _may_undo(interaction: Interaction, reset: Reset) -> bool:
    """Tell whether the person who acts moderates the place of a reset."""
    if reset.guild_id != interaction.guild_id:
        return False
    if reset.channel_id == interaction.channel_id:
        return reset.guild_id is None or interaction.permissions.manage_messages
    if interaction.guild is None or not isinstance(interaction.user, discord.Member):
        return False
    channel = interaction.guild.get_channel_or_thread(reset.channel_id)
    return channel is not None and channel.permissions_for(interaction.user).manage_messages
