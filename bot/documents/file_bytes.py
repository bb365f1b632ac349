"""What kind of file some bytes are, and the text in them. Pure; nothing here opens a document."""

from __future__ import annotations

import unicodedata
from enum import StrEnum

MAX_SHARE_OF_CONTROLS = 0.05
_NUM_LOOKED_AT = 1024
_SHARE_OF_ZEROS = 0.7
_MARKS = (b"\xff\xfe", b"\xfe\xff")


class FileKind(StrEnum):
    """What a file is, as far as it matters here."""

    TEXT = "text"
    """Or nothing that is known: then there is no text in it."""
    PDF = "pdf"
    ZIP = "zip"
    """What a Word document is, among others."""
    PICTURE = "picture"
    VIDEO = "video"
    SOUND = "sound"


_BEGINNINGS = (
    (b"\x89PNG", FileKind.PICTURE),
    (b"\xff\xd8\xff", FileKind.PICTURE),
    (b"GIF8", FileKind.PICTURE),
    (b"II*\0", FileKind.PICTURE),
    (b"MM\0*", FileKind.PICTURE),
    (b"\x1aE\xdf\xa3", FileKind.VIDEO),
    (b"OggS", FileKind.SOUND),
    (b"ID3", FileKind.SOUND),
    (b"fLaC", FileKind.SOUND),
    (b"\xff\xfb", FileKind.SOUND),
    (b"PK\x03\x04", FileKind.ZIP),
)
_RIFF = {b"WEBP": FileKind.PICTURE, b"AVI ": FileKind.VIDEO, b"WAVE": FileKind.SOUND}
_FTYP = {
    b"avif": FileKind.PICTURE,
    b"heic": FileKind.PICTURE,
    b"mif1": FileKind.PICTURE,
    b"M4A ": FileKind.SOUND,
}


def kind_of(data: bytes) -> FileKind:
    """Return what `data` begins as."""
    if data[:4] == b"RIFF" and data[8:12] in _RIFF:
        return _RIFF[data[8:12]]
    if data[4:8] == b"ftyp" and b"\0" in data[:4]:
        return _FTYP.get(data[8:12], FileKind.VIDEO)
    if data[:_NUM_LOOKED_AT].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"%PDF-"):
        return FileKind.PDF
    return next((kind for beginning, kind in _BEGINNINGS if data.startswith(beginning)), FileKind.TEXT)


def decode(data: bytes) -> str | None:
    """Return the text in `data`, whatever its encoding, None where it is none. Takes up to a second."""
    text = _decoded(data)
    if text is None:
        return None
    kept = cleaned(text)
    num_dropped = len(text) - len(kept) - text.count("\r")
    return None if num_dropped > MAX_SHARE_OF_CONTROLS * len(text) else kept


def cleaned(text: str) -> str:
    """Return `text` without control characters and half characters."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))


def _wide(data: bytes) -> str | None:
    """Return the encoding of western text in two bytes a character without a mark in front, if it is that.

    As UTF-8 it would be read too, with a zero behind each letter.
    """
    if data[:2] in _MARKS:
        return None
    num_high, num_low = data[::2].count(0), data[1::2].count(0)
    most = len(data) // 2 * _SHARE_OF_ZEROS
    if num_low > most and not num_high:
        return "utf-16-le"
    return "utf-16-be" if num_high > most and not num_low else None


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode(_wide(data) or "utf-8-sig")
    except UnicodeDecodeError:
        import charset_normalizer  # 8 ms of a start

        guess = charset_normalizer.from_bytes(data).best()
        return None if guess is None else str(guess)
