"""What a Discord message brings along: text files are read, for everything else there is a sentence.

Knows nothing of encodings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import discord

from bot.conversation.mentions import label
from bot.conversation.text_files import MAX_BYTES, MAX_FILES, decode
from bot.errors import AttachmentError
from bot.language.phrases import phrase
from bot.on_discord.discord_outbox import DISCORD_FAILURES

FETCH_TIMEOUT_S = 20.0
_SEEN = ("image/", "video/", "audio/")


def is_seen_or_heard(attachment: discord.Attachment) -> bool:
    """Tell whether an attachment is a picture, a film or a sound."""
    return (attachment.content_type or "").startswith(_SEEN)


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
