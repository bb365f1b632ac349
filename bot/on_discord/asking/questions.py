"""From a Discord message to a question: its text, what it replies to, and the text files it brings.

Knows nothing of when a message is for us.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Sequence

import discord

from bot.conversation.jobs import Question
from bot.conversation.mentions import Bot, label
from bot.errors import AttachmentError
from bot.language.phrases import phrase
from bot.on_discord.hearing.message_text import blocks_of, text_of, told
from bot.on_discord.interactions import DISCORD_FAILURES
from bot.on_discord.origins import origin_of_message, ref_of
from storage.conversations import Quote

MAX_QUOTE_CHARS = 1500
MAX_FILES = 3
MAX_BYTES = 64 * 1024
FETCH_TIMEOUT_S = 20.0
_SEEN = ("image/", "video/", "audio/")
_MAX_SHARE_OF_CONTROLS = 0.05


async def question_of(message: discord.Message, bot: Bot, newest_part_id: int | None = None) -> Question:
    """Return what a message asks. Raises `AttachmentError`.

    A reply quotes what it replies to, but not the newest answer (shown by `newest_part_id`): it is the last
    thing said anyway.
    """
    guild_id = None if message.guild is None else message.guild.id
    quote = quote_of(message, bot)
    is_unseen = quote is not None and not quote.content
    if quote is not None and (is_unseen or quote.discord_id == newest_part_id):
        quote = None
    content, has_pictures = await _content_of(message, bot)
    notes = [phrase("answer.quote_unseen")] if is_unseen else []
    return Question(
        conversation=ref_of(message.channel.id, message.channel, guild_id),
        discord_id=message.id,
        author_id=message.author.id,
        author_name=message.author.display_name,
        content=content,
        created_at=message.created_at,
        origin=origin_of_message(message),
        quotes=() if quote is None else (quote,),
        starter_id=message.channel.id if isinstance(message.channel, discord.Thread) else None,
        notes=(*notes, *([phrase("files.image")] if has_pictures else [])),
    )


def quote_of(message: discord.Message, bot: Bot) -> Quote | None:
    """Return the message that this one replies to; without text if we cannot see it, None if it is none."""
    replied = None if message.reference is None else message.reference.resolved
    if message.type is not discord.MessageType.reply or not isinstance(replied, discord.Message):
        return None
    return quoted(replied, bot)


def quoted(message: discord.Message, bot: Bot) -> Quote:
    """Return a message as a quote; our own are from nobody by name."""
    text = text_of(message, bot) if blocks_of(message, bot) else ""
    cut = text if len(text) <= MAX_QUOTE_CHARS else f"{text[:MAX_QUOTE_CHARS]}…"
    name = "" if message.author.id == bot.user_id else label(message.author.display_name)
    return Quote(name, cut, message.id, message.author.id)


async def read_texts(attachments: Sequence[discord.Attachment]) -> list[tuple[str, str]]:
    """Return name and text of each attachment. Raises `AttachmentError` with what to do instead."""
    if len(attachments) > MAX_FILES:
        raise AttachmentError(phrase("files.too_many", limit=MAX_FILES))
    for attachment in attachments:
        if attachment.size > MAX_BYTES:
            raise AttachmentError(
                phrase("files.too_large", name=label(attachment.filename), limit=MAX_BYTES // 1024)
            )
    return [(one.filename, await _read_text(one)) for one in attachments]


def joined(content: str, files: list[tuple[str, str]]) -> str:
    """Return a question with the files, each a name and a text, below it."""
    blocks = [f"File {label(name)}:\n{text.strip()}" for name, text in files if text.strip()]
    return "\n\n".join([*([content] if content.strip() else []), *blocks])


def is_seen_or_heard(attachment: discord.Attachment) -> bool:
    """Tell whether an attachment is a picture, a film or a sound."""
    return (attachment.content_type or "").startswith(_SEEN)


async def _read_text(attachment: discord.Attachment) -> str:
    name = label(attachment.filename)
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            data = await attachment.read()
    except DISCORD_FAILURES as error:
        raise AttachmentError(phrase("files.not_fetched", name=name)) from error
    text = await asyncio.to_thread(decode, data[:MAX_BYTES])
    if text is None:
        raise AttachmentError(phrase("files.not_text", name=name))
    return text


def decode(data: bytes) -> str | None:
    """Return the text in `data`, whatever its encoding, None where it is none. Takes up to a second."""
    text = _decoded(data)
    if text is None:
        return None
    kept = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    num_dropped = len(text) - len(kept) - text.count("\r")
    return None if num_dropped > _MAX_SHARE_OF_CONTROLS * len(text) else kept


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        import charset_normalizer  # 8 ms of a start

        guess = charset_normalizer.from_bytes(data).best()
        return None if guess is None else str(guess)


async def _content_of(message: discord.Message, bot: Bot) -> tuple[str, bool]:
    """Return text and files of a message, and whether it has pictures too."""
    text = told(blocks_of(message, bot))
    pictures = [one for one in message.attachments if is_seen_or_heard(one)]
    others = [one for one in message.attachments if not is_seen_or_heard(one)]
    if pictures and not others and not text:
        raise AttachmentError(phrase("files.image"))
    return joined(text, await read_texts(others)), bool(pictures)
