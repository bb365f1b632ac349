"""Patterns that moderators write: checked when they are set, limited in time when they are used.

The only file that imports `regex`, besides the filter of answers: unlike `re` it can be told when to give
up, so no pattern can hold anything for longer than its time. Knows nothing of where patterns are kept.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from enum import Enum, auto

import regex

MAX_PATTERNS = 20
MAX_PATTERN_CHARS = 200
TIMEOUT_S = 0.1
"""For all patterns over one text together."""
_TRIAL_TIMEOUT_S = 0.05
_MAX_REPETITIONS = 50_000
"""All `{…}` of a pattern multiplied."""
_TRIALS = ("a" * 200 + "!", "ab" * 100, " " * 200, "1" * 200)


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
