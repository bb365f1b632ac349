"""Drafts an answer's next tokens from what the conversation says already, and learns if that pays. Pure.

Prompt lookup: where the last few tokens stood before, what followed them then may follow again, as when an
answer quotes, sums up or repairs something. A draft changes no answer: each token is sampled from its own
logits, and the draft only tells for which tokens in a row logits are computed at once. What it can cost is
time, so that drafts that do not pay become rarer and rarer.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import takewhile
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

_GRAM = 3
"""Tokens that must have stood before in the same order."""
_GRAM_BESIDE = 5
"""Where others are answered at the same time: a wrong draft costs more there."""
_MAX_MATCH = MAX_DRAFT = 15
MAX_DRAFTING = 4
"""Conversations that are answered at once where there are drafts. More of them fill a step already."""
MAX_ROWS = 2 * (1 + MAX_DRAFT)
"""Tokens at most that a step with drafts computes."""
_EVEN_DRAFT = 7
"""With the token before it, as many rows as products take at once: a few more cost as much as the longest."""
_MAX_PAUSE = 127


class PromptLookup:
    """Finds where the last tokens of a growing sequence stood before."""

    def __init__(self) -> None:
        self._followers: dict[tuple[int, ...], int] = {}
        self._num_indexed = _GRAM

    def draft(self, ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """Return what may follow `ids`, at most `max_tokens`; `ids` begins with those of the last call."""
        start = self.find(ids)
        if start is None:
            return ()
        # What follows may reach the end: then it goes round, for the sequence has begun to repeat itself.
        period = len(ids) - start
        return tuple(ids[start + offset % period] for offset in range(max_tokens))

    def find(self, ids: Sequence[int]) -> int | None:
        """Return the place behind the last tokens of `ids` where they stood before, None if they did not."""
        for position in range(self._num_indexed, len(ids)):
            self._followers[tuple(ids[position - _GRAM : position])] = position
        self._num_indexed = max(self._num_indexed, len(ids))
        return self._followers.get(tuple(ids[-_GRAM:]))

    def num_matching(self, ids: Sequence[int]) -> int:
        """Return how many of the last tokens of `ids` stood before in this order, `_MAX_MATCH` at most."""
        start = self.find(ids)
        if start is None:
            return 0
        pairs = zip(reversed(ids[max(0, start - _MAX_MATCH) : start]), reversed(ids), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class Speculation:
    """One answer's drafts: how long the next one is, after how those before have paid.

    The first draft is a single token. One that is accepted whole is followed by one twice as long; one that
    took longer than its tokens would have taken one by one, by a pause that doubles each time. Beside other
    conversations short drafts never pay: there more must have stood before, and a draft is as long as that.
    """

    def __init__(self) -> None:
        self._lookup = PromptLookup()
        self._length = 1
        self._pause = 0
        self._num_to_wait = 0

    @property
    def is_paused(self) -> bool:
        """Whether the next tokens are not drafted, since drafts did not pay."""
        return self._num_to_wait > 0

    def draft(self, ids: Sequence[int], max_tokens: int, *, is_alone: bool = True) -> tuple[int, ...]:
        """Return what the tokens after `ids` may be, possibly nothing."""
        if self._num_to_wait:
            self._num_to_wait -= 1
            return ()
        length = self._length
        if not is_alone:
            num_matching = self._lookup.num_matching(ids)
            if num_matching < _GRAM_BESIDE:
                return ()
            length = max(length, num_matching)
        length = min(length, max_tokens)
        return self._lookup.draft(ids, length if length >= MAX_DRAFT else min(length, _EVEN_DRAFT))

    def record(self, num_drafted: int, num_accepted: int, *, paid: bool) -> None:
        """Learn how the last draft turned out; `paid` if its step took no longer than single ones."""
        if not paid:
            self._pause = min(2 * self._pause + 1, _MAX_PAUSE)
            self._num_to_wait = self._pause
            self._length = 1
        else:
            self._pause = 0
            is_whole = num_accepted == num_drafted
            self._length = min(2 * num_drafted + 1, MAX_DRAFT) if is_whole else num_accepted + 1


class StepTimer:
    """How long plain decode steps take, by the number of their rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def record(self, num_rows: int, seconds: float) -> None:
        """Take note of a plain step's duration; one hiccup counts little."""
        known = self._seconds.get(num_rows)
        if known is None:
            self._seconds[num_rows] = seconds
        else:
            self._seconds[num_rows] = known + 0.1 * (min(seconds, 2 * known) - known)

    def knows(self, num_rows: int) -> bool:
        """Tell whether a step of so many rows was timed."""
        return num_rows in self._seconds

    def token_s(self, num_rows: int) -> float:
        """Return the seconds that a token takes in a plain step of so many rows, 0 where none was timed."""
        return self._seconds.get(num_rows, 0.0) / num_rows

    def costs(self, num_rows: int, decode_s: float, drafted_s: Mapping[Key, float]) -> dict[Key, float]:
        """Return what each of the drafts of a step of so many rows has cost, in seconds.

        That is the time of its own run, and its part of what the rows without drafts took more in `decode_s`
        than in a step of all: fewer rows at once are slower each.
        """
        if not drafted_s:
            return {}
        plain_s = (num_rows - len(drafted_s)) * self.token_s(num_rows)
        more_s = max(0.0, decode_s - sum(drafted_s.values()) - plain_s) / len(drafted_s)
        return {key: seconds + more_s for key, seconds in drafted_s.items()}

    def pays(self, seconds: float, num_tokens: int, num_rows: int = 1) -> bool:
        """Tell whether `num_tokens` in `seconds` are no slower than in plain steps; unknown counts as yes."""
        return not self.knows(num_rows) or seconds <= self.token_s(num_rows) * num_tokens
