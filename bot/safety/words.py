"""A list of words and phrases, found however they are dressed up. Pure.

Case, accents, look-alike letters, digits in the place of letters and letters set apart (b a d, b.a.d) make no
difference. A word counts only as a whole word, unless it ends in `*`; writing without spaces between words
(Chinese, Japanese, Thai) has no whole words, so there it counts anywhere.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence

from bot.safety.folding import fold
from bot.safety.patterns import Finding, search

_WORD = re.compile(r"[\w@$]+")
_SPELLED = re.compile(r"(?<![\w@$])[\w@$](?:[^\w@$\n]{1,2}[\w@$](?![\w@$]))+")
_DIGITS = str.maketrans("013457@$", "oieastas")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_MAX_PHRASE_WORDS = 8


class WordList:
    """What is not to be said."""

    def __init__(self, words: Iterable[str]) -> None:
        self._phrases: set[tuple[str, ...]] = set()
        self._beginnings: list[str] = []
        self._anywhere: list[str] = []
        for word in words:
            self._add(word)
        self._lengths = sorted({len(phrase) for phrase in self._phrases})

    def _add(self, word: str) -> None:
        folded = fold(word).text
        if _UNSPACED.search(folded):
            self._anywhere.append(folded.strip())
            return
        tokens = tuple(_tokens(folded)[:_MAX_PHRASE_WORDS])
        if len(tokens) == 1 and folded.rstrip().endswith("*"):
            self._beginnings.append(tokens[0])
        elif tokens:
            self._phrases.add(tokens)

    def is_in(self, text: str) -> bool:
        """Tell whether any word of the list is in `text`."""
        folded = fold(text).text
        spelled = [_token("".join(_WORD.findall(match.group()))) for match in _SPELLED.finditer(folded)]
        tokens, bare = _tokens(folded), _tokens(folded.replace("@", " "))
        return (
            any(part in folded for part in self._anywhere)
            or any(self._has_phrase(words) for words in (tokens, bare, *([word] for word in spelled)))
            or any(word.startswith(tuple(self._beginnings)) for word in (*tokens, *bare, *spelled))
        )

    def _has_phrase(self, tokens: Sequence[str]) -> bool:
        return any(
            tuple(tokens[start : start + length]) in self._phrases
            for length in self._lengths
            for start in range(len(tokens) - length + 1)
        )


def _tokens(folded: str) -> list[str]:
    return [_token(word) for word in _WORD.findall(folded)]


def _token(word: str) -> str:
    """Return a word with digits read as letters; a number stays one."""
    letters = word.translate(_DIGITS).replace("_", "")
    return letters if any(c.isalpha() for c in word) else word


class TextLists:
    """What one list of words and one list of patterns find."""

    def __init__(self, words: Sequence[str], patterns: Sequence[str]) -> None:
        self._words = tuple(words)
        self._patterns = tuple(patterns)

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be found."""
        return not self._words and not self._patterns

    async def look(self, text: str) -> Finding:
        """Return what the lists say of `text`."""
        if self.is_empty or not text:
            return Finding.CLEAN
        return await asyncio.to_thread(self._look, text)

    def _look(self, text: str) -> Finding:
        if WordList(self._words).is_in(text):
            return Finding.FORBIDDEN
        return search(self._patterns, text)
