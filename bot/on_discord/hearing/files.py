"""The files that come with a message, opened: what is in them decides, not what they are called.

Text files in any encoding, PDFs and Word documents are read. Pictures, videos and sounds are told of. All is
bounded: bytes, pages, seconds, and how many documents are read at a time. Knows nothing of messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import discord

from bot.conversation.mentions import label
from bot.documents.document_reader import Document, Problem, read_document
from bot.documents.file_bytes import FileKind, decode, kind_of
from bot.errors import AttachmentError
from bot.language.phrases import Phrase, phrase
from bot.on_discord.hearing.message_text import MAX_FILE_NAME_CHARS, claimed_kind, line_of
from bot.on_discord.interactions import DISCORD_FAILURES

MAX_FILES = 3
MAX_BYTES = 64 * 1024
"""Of a text file."""
MAX_DOCUMENT_BYTES = 8 * 2**20
MAX_DOCUMENTS = 2
"""Read at a time."""
MAX_WAITING = 8
"""Documents that wait for their turn."""
FETCH_TIMEOUT_S = 20.0
_DOCUMENT_NAMES = (".pdf", ".docx")
_DOCUMENT_TYPES = ("application/pdf", "application/vnd.openxmlformats-officedocument.wordprocessingml")
_MEDIA_NAMES = (
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".avif", ".heic"),
    *(".mp4", ".mov", ".webm", ".mp3", ".ogg", ".wav", ".m4a", ".flac"),
)
"""What is not called so may be a text all the same: Discord calls `app.ts` a video, and it is code."""
_KINDS = {FileKind.PICTURE: "Picture", FileKind.VIDEO: "Video", FileKind.SOUND: "Sound"}
_CANNOT = {
    "Picture": "files.image",
    "Video": "files.video",
    "Sound": "files.sound",
    "Voice message": "files.voice",
}
_PROBLEMS = {
    Problem.LOCKED: "files.locked",
    Problem.NOT_TEXT: "files.not_text",
    Problem.EMPTY: "files.no_text",
    Problem.BROKEN: "files.broken",
}


Fit = Callable[[str, int], Awaitable[int]]
"""Tells how many characters of a document there is room for, where so many files share it."""
Share = Callable[[str], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """What the model is told of a file.

    note: what people are told below the answer: that only a part was read, or that it cannot be seen or
    heard. problem: why it could not be read. is_read: its text is in the block.
    """

    block: str
    note: Phrase | None = None
    problem: str | None = None
    is_read: bool = False


class Files:
    """Opens files."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(MAX_DOCUMENTS)
        self._num_waiting = 0

    async def open(self, attachments: Sequence[discord.Attachment], fit: Fit) -> list[OpenedFile]:
        """Open the files of a message, all at once. Raises `AttachmentError` if there are too many.

        `fit` says how much of their text there is room for.
        """
        if sum(not claimed_kind(one) for one in attachments) > MAX_FILES:
            raise AttachmentError(phrase("files.too_many", limit=MAX_FILES))

        async def share(text: str) -> int:
            return await fit(text, len(attachments))

        return await asyncio.gather(*(self._open(one, share) for one in attachments))

    async def _open(self, attachment: discord.Attachment, share: Share) -> OpenedFile:
        claimed, is_document = claimed_kind(attachment), _may_be_document(attachment)
        limit = MAX_DOCUMENT_BYTES if is_document else MAX_BYTES
        if attachment.is_voice_message() or (claimed and attachment.size > limit):
            return _not_perceived(attachment, claimed)
        try:
            if attachment.size > limit:
                raise _too_large(attachment, limit)
            if attachment.size > MAX_BYTES:
                async with self._turn():
                    return await self._look_into(attachment, await _fetch(attachment), share, has_turn=True)
            return await self._look_into(attachment, await _fetch(attachment), share)
        except AttachmentError as error:
            if claimed:
                return _not_perceived(attachment, claimed)
            return OpenedFile(line_of(attachment), problem=error.sentence)

    async def _look_into(
        self, attachment: discord.Attachment, data: bytes, share: Share, *, has_turn: bool = False
    ) -> OpenedFile:
        """Return what is in a file. Raises `AttachmentError`."""
        kind = kind_of(data)
        if kind in _KINDS:
            return _not_perceived(attachment, _KINDS[kind])
        if kind in (FileKind.PDF, FileKind.ZIP):
            if has_turn:
                document = await asyncio.to_thread(read_document, data, kind)
            else:
                async with self._turn():
                    document = await asyncio.to_thread(read_document, data, kind)
            room = await share(document.text) if document.text else 0
            return _told(attachment, document.beginning(room))
        if len(data) > MAX_BYTES:
            raise _too_large(attachment, MAX_BYTES)
        text = await asyncio.to_thread(decode, data)
        if text is None:
            raise AttachmentError(phrase("files.not_text", name=_name(attachment)))
        if not text.strip():
            return OpenedFile(line_of(attachment, state="empty"))
        return OpenedFile(_block(attachment, text), is_read=True)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait until few enough documents are being read. Raises `AttachmentError` if too many wait."""
        if self._num_waiting >= MAX_WAITING:
            raise AttachmentError(phrase("files.busy"))
        self._num_waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._num_waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


def why_not_readable(attachment: discord.Attachment) -> Phrase | None:
    """Return why there is surely nothing to read in an attachment, as far as that can be told unopened."""
    claimed = claimed_kind(attachment)
    is_plain = attachment.filename.lower().endswith(_MEDIA_NAMES) or attachment.size > MAX_BYTES
    is_sure = attachment.is_voice_message() or (is_plain and not _may_be_document(attachment))
    return phrase(_CANNOT[claimed]) if claimed and is_sure else None


async def _fetch(attachment: discord.Attachment) -> bytes:
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            return await attachment.read()
    except DISCORD_FAILURES as error:
        raise AttachmentError(phrase("files.not_fetched", name=_name(attachment))) from error


def _told(attachment: discord.Attachment, document: Document) -> OpenedFile:
    """Return what is told of a document that was read."""
    if document.problem:
        problem = phrase(_PROBLEMS[document.problem], name=_name(attachment))
        return OpenedFile(line_of(attachment), problem=problem)
    note = None
    if document.num_read < document.num_pages:
        last, pages = document.num_read, document.num_pages
        note = phrase("files.cut_pages", name=_name(attachment), last=last, pages=pages)
    elif document.is_cut:
        note = phrase("files.cut", name=_name(attachment))
    return OpenedFile(_block(attachment, document.text + ("\n…" if note else "")), note, is_read=True)


def _not_perceived(attachment: discord.Attachment, kind: str) -> OpenedFile:
    return OpenedFile(line_of(attachment, kind), note=phrase(_CANNOT[kind]))


def _block(attachment: discord.Attachment, text: str) -> str:
    return f"File {_name(attachment)}:\n{text.strip()}"


def _name(attachment: discord.Attachment) -> str:
    return label(attachment.filename, MAX_FILE_NAME_CHARS)


def _too_large(attachment: discord.Attachment, limit: int) -> AttachmentError:
    key = "files.too_large" if limit == MAX_BYTES else "files.document_too_large"
    size = limit // 1024 if limit == MAX_BYTES else limit // 2**20
    return AttachmentError(phrase(key, name=_name(attachment), limit=size))


def _may_be_document(attachment: discord.Attachment) -> bool:
    is_named_so = attachment.filename.lower().endswith(_DOCUMENT_NAMES)
    return is_named_so or (attachment.content_type or "").startswith(_DOCUMENT_TYPES)
