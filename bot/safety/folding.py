"""Texts as a reader sees them: case, accents, look-alikes and invisible characters made the same. Pure.

Keeps where each folded character came from, so that what is found can be cut out of the original.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_LOOK_ALIKES = {
    ord(other): latin
    for latin, others in {
        "a": "аɑα",
        "b": "вьβ",
        "c": "сϲ",
        "d": "ԁ",
        "e": "еєε",
        "g": "ɡց",
        "h": "һհнʜ",
        "i": "іıɩι",
        "j": "јϳ",
        "k": "кκ",
        "l": "ӏʟ",
        "m": "мʍ",
        "n": "ոɴη",
        "o": "оοօөσ",
        "p": "рρ",
        "q": "ԛզ",
        "r": "гʀ",
        "s": "ѕꜱ",
        "t": "тτ",
        "u": "սυ",
        "v": "ѵν",
        "w": "ԝωѡ",
        "x": "хχ",
        "y": "уүγʏ",
        "z": "ᴢ",
        # What browsers read as a dot or a slash.
        ".": "。․‧",
        "/": "∕⁄⧸\\",
    }.items()
    for other in others
}
"""Letters of other scripts, as they are after folding of case, that look like Latin ones."""
_IGNORED = {"Cf", "Mn", "Me", "Cc"}
_KEPT_CONTROLS = "\n\t\r"
_BLANKS = "\u115f\u1160\u3164\uffa0\u034f\u17b4\u17b5\u2800"
"""Letters and symbols that are drawn as nothing."""


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded text; `origins[i]` is the place in the original of its character `i`."""

    text: str
    origins: Sequence[int]

    def origin(self, place: int, length: int) -> int:
        """Return where `place` is in the original, which has `length` characters."""
        return self.origins[place] if place < len(self.origins) else length


def fold(text: str) -> Folded:
    """Return `text` folded."""
    if text.isascii() and "\\" not in text and text.isprintable():
        return Folded(text.lower(), range(len(text)))
    seen: dict[str, str] = {}
    characters: list[str] = []
    origins: list[int] = []
    for index, character in enumerate(text):
        folded = seen.get(character)
        if folded is None:
            folded = seen[character] = fold_character(character)
        for part in folded:
            characters.append(part)
            origins.append(index)
    return Folded("".join(characters), origins)


def fold_character(character: str) -> str:
    """Return what one character looks like; nothing for one that is not seen."""
    if character in _BLANKS:
        return ""
    parts = unicodedata.normalize("NFKD", character).casefold()
    kept = "".join(c for c in parts if c in _KEPT_CONTROLS or unicodedata.category(c) not in _IGNORED)
    return kept.translate(_LOOK_ALIKES)
