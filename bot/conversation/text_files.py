"""Text files that come with a question: read in whatever encoding they have, within bounds. Pure.

Knows nothing of where files come from. Decoding guesses, which takes up to a second: do it in a thread.
"""

from __future__ import annotations

import codecs
import unicodedata

from bot.conversation.mentions import label

MAX_FILES = 3
MAX_BYTES = 64 * 1024
_UNICODE_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAX_SHARE_OF_CONTROLS = 0.05


def decode(data: bytes) -> str | None:
    """Return the text in `data`, None where it is none."""
    text = _decoded(data)
    if text is None:
        return None
    kept = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    num_dropped = len(text) - len(kept) - text.count("\r")
    return None if num_dropped > _MAX_SHARE_OF_CONTROLS * len(text) else kept


def joined(content: str, files: list[tuple[str, str]]) -> str:
    """Return a question with the files, each a name and a text, below it."""
    blocks = [f"File {label(name)}:\n{text.strip()}" for name, text in files if text.strip()]
    return "\n\n".join([*([content] if content.strip() else []), *blocks])


def _decoded(data: bytes) -> str | None:
    for mark, encoding in _UNICODE_MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        import charset_normalizer  # 8 ms of a start

        guess = charset_normalizer.from_bytes(data).best()
        return None if guess is None else str(guess)
