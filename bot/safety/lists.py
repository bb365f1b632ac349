"""What moderators do not want to read: lists of words, found however they are dressed up, and of patterns.

Case, accents, look-alike letters, digits in the place of letters and letters set apart (b a d, b.a.d) make no
difference to words. A word counts only as a whole word, unless it ends in `*`; writing without spaces between
words (Chinese, Japanese, Thai) has no whole words, so there it counts anywhere. Patterns are checked when
they are set and limited in time when they are used: `regex` can be told when to give up. Knows nothing of
where lists are kept.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterable, Sequence
from enum import Enum, auto

import regex

from bot.safety.folding import fold

MAX_PATTERNS = 20
MAX_PATTERN_CHARS = 200
TIMEOUT_S = 0.1
"""For all patterns over one text together."""
_TRIAL_TIMEOUT_S = 0.05
_MAX_REPETITIONS = 50_000
"""All `{…}` of a pattern multiplied."""
_TRIALS = ("a" * 200 + "!", "ab" * 100, " " * 200, "1" * 200)
_WORD = re.compile(r"[\w@$]+")
_SPELLED = re.compile(r"(?<![\w@$])[\w@$](?:[^\w@$\n]{1,2}[\w@$](?![\w@$]))+")
_DIGITS = str.maketrans("013457@$", "oieastas")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_MAX_PHRASE_WORDS = 8


class PatternError(Exception):
    """A pattern cannot be used. `reason`: too_long, invalid, matches_all or slow."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The pattern cannot be used: {reason}.")


class Finding(Enum):
    """What a look at a text gave."""

    CLEAN = auto()
    FORBIDDEN = auto()
    UNDECIDED = auto()
    """The time was up before all patterns had been tried."""


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


def check_pattern(pattern: str) -> str:
    """Return `pattern`. Raises `PatternError` for one too long, not valid or slow already on trifles."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise PatternError("too_long")
    # Repetitions inside repetitions multiply, and to compile many takes long already, without a time limit.
    counts = [int(written[-9:]) for written in re.findall(r"[{,]\s*([0-9]+)(?=\s*[,}])", pattern)]
    if math.prod(max(1, count) for count in counts) > _MAX_REPETITIONS:
        raise PatternError("slow")
    compiled = _compile(pattern)
    try:
        if compiled.search("", timeout=_TRIAL_TIMEOUT_S) is not None:
            raise PatternError("matches_all")
        for trial in _TRIALS:
            compiled.search(trial, timeout=_TRIAL_TIMEOUT_S)
    except TimeoutError:
        raise PatternError("slow") from None
    return pattern


def search(patterns: Sequence[str], text: str, timeout_s: float = TIMEOUT_S) -> Finding:
    """Look for any of `patterns` in `text` for at most about `timeout_s`. Call it off the event loop."""
    deadline_s = time.perf_counter() + timeout_s
    try:
        for pattern in patterns:
            left_s = deadline_s - time.perf_counter()
            if left_s <= 0:
                return Finding.UNDECIDED
            if _compile(pattern).search(text, timeout=left_s, concurrent=True) is not None:
                return Finding.FORBIDDEN
    except TimeoutError:
        return Finding.UNDECIDED
    return Finding.CLEAN


def _compile(pattern: str) -> regex.Pattern[str]:
    """Return the compiled pattern; `regex` keeps a bounded number of them."""
    try:
        return regex.compile(pattern, regex.IGNORECASE | regex.VERSION1)
    except (regex.error, OverflowError, RecursionError, MemoryError) as error:
        raise PatternError("invalid") from error
