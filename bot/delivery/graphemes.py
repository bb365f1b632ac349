"""Where a text may be cut without breaking what a reader sees as one character.

A small, conservative reading of the extended grapheme clusters of Unicode Annex 29: it may keep together
what the annex would part (anything around a zero-width joiner), and parts nothing that people type as one.
Knows nothing of Discord or Markdown.
"""

from __future__ import annotations

import unicodedata

_JOINER = "\u200d"
_VIRAMA_CLASS = 9
_MARKS = frozenset({"Mn", "Me", "Mc"})
_LATE_EXTENDERS = frozenset("\u200c\u200d\u0e33\u0eb3\uff9e\uff9f")
_FIRST_EXTENDER = "\u0300"


def is_boundary(text: str, index: int, start: int = 0) -> bool:
    """Tell whether a cut before `text[index]` leaves every cluster whole.

    `start` is a known boundary at or before `index`; nothing before it is looked at.
    """
    if not start < index < len(text):
        return True
    before, after = text[index - 1], text[index]
    if after < _FIRST_EXTENDER:
        return not (before == "\r" and after == "\n")
    if before == _JOINER or unicodedata.combining(before) == _VIRAMA_CLASS or _extends(after):
        return False
    if _is_regional(before) and _is_regional(after):
        return _num_regional_before(text, index, start) % 2 == 0
    return not (_is_leading_jamo(before) and (_is_leading_jamo(after) or "\uac00" <= after <= "\ud7a3"))


def _extends(char: str) -> bool:
    """Tell whether `char` belongs to the character before it."""
    return (
        unicodedata.category(char) in _MARKS
        or char in _LATE_EXTENDERS
        or "\U0001f3fb" <= char <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= char <= "\U000e007f"  # tags, as in the flag of Scotland
        or "\u1160" <= char <= "\u11ff"  # Hangul vowels and final consonants
        or "\ud7b0" <= char <= "\ud7fb"
    )


def _is_regional(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def _num_regional_before(text: str, index: int, start: int) -> int:
    first = index
    while first > start and _is_regional(text[first - 1]):
        first -= 1
    return index - first


def _is_leading_jamo(char: str) -> bool:
    return "\u1100" <= char <= "\u115f" or "\ua960" <= char <= "\ua97c"
