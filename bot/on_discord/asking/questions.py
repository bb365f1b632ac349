"""From a Discord message to a question: what it says, and what it refers to.

Knows nothing of when a message is for us.
"""

from __future__ import annotations

import dataclasses

import discord

from bot.conversation.jobs import Question
from bot.conversation.mentions import Bot
from bot.conversation.service import ChatService
from bot.errors import AttachmentError
from bot.on_discord.hearing.hearing import Hearing, Reference, Told, head_of
from bot.on_discord.hearing.message_text import told
from bot.on_discord.origins import origin_of_message, ref_of


class Questions:
    """Makes questions of messages."""

    def __init__(self, hearing: Hearing, chat: ChatService) -> None:
        self._hearing = hearing
        self._chat = chat

    async def of(
        self,
        message: discord.Message,
        bot: Bot,
        newest_part_id: int | None = None,
        asker: discord.User | discord.Member | None = None,
    ) -> Question:
        """Return what a message asks. Raises `AttachmentError`.

        A reply quotes what it replies to, but not the newest answer (shown by `newest_part_id`): it is the
        last thing said anyway. `asker`: who wrote it, if another one posts it for them.
        """
        heard = await self._hear(message, bot)
        is_newest = message.reference is not None and message.reference.message_id == newest_part_id
        references = [Reference() if is_newest else await self._hearing.replied(message, bot)]
        if not heard.text and references[0].quote is not None and not references[0].is_readable:
            raise AttachmentError(references[0].notes[0])
        references += await self._hearing.linked(
            message.content, bot, asker or message.author, message.channel
        )
        if not heard.is_readable and heard.notes and not any(one.is_readable for one in references):
            raise AttachmentError(heard.notes[0])
        guild_id = None if message.guild is None else message.guild.id
        question = Question(
            conversation=ref_of(message.channel.id, message.channel, guild_id),
            discord_id=message.id,
            author_id=message.author.id,
            author_name=message.author.display_name,
            content=heard.text,
            created_at=message.created_at,
            origin=origin_of_message(message),
            starter_id=message.channel.id if isinstance(message.channel, discord.Thread) else None,
            notes=heard.notes,
        )
        return referring(question, references)

    async def content_of(self, message: discord.Message, bot: Bot) -> str:
        """Return what an edited message says now. Raises `AttachmentError`."""
        return (await self._hear(message, bot)).text

    async def begun(self, question: Question, channel: object, bot: Bot) -> Question:
        """Return the first question in a thread with what the thread is about; any other one as it is."""
        if not isinstance(channel, discord.Thread) or question.discord_id == channel.id:
            return question
        known_id = await self._chat.conversations.find(question.conversation)
        has_begun = known_id is not None and await self._chat.conversations.recent(known_id, 1)
        if has_begun or await self._chat.is_our_thread(channel.id):
            return question
        starter = await self._hearing.starter(channel, bot)
        if starter.quote is not None and any(q.discord_id == channel.id for q in question.quotes):
            return question
        return referring(question, [starter])

    async def _hear(self, message: discord.Message, bot: Bot) -> Told:
        """Return what a message of a question says. Raises `AttachmentError`."""
        heard = await self._hearing.hear(message, bot)
        if heard.problems:
            raise AttachmentError(heard.problems[0])
        channel = message.channel
        if isinstance(channel, discord.Thread) and message.id == channel.id and heard.text:
            return dataclasses.replace(heard, text=told([head_of(channel), heard.text]))
        return heard


def referring(question: Question, references: list[Reference]) -> Question:
    """Return a question that refers to messages, the first one first, before those it refers to already."""
    quotes = tuple(one.quote for one in references if one.quote is not None)
    notes = (*question.notes, *(note for one in references for note in one.notes))
    return dataclasses.replace(
        question, quotes=(*quotes, *question.quotes), notes=tuple(dict.fromkeys(notes))
    )
