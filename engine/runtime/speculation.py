"""Drafts an answer's next tokens from what the conversation says already, and learns if that pays. Pure.

Prompt lookup: where the last few tokens stood before, what followed them then may follow again, as when an
answer quotes, sums up or repairs something. A draft changes no answer: each token is sampled from its own
logits, and the draft only tells for which tokens in a row logits are computed at once. What it can cost is
time, so that drafts that do not pay become rarer and rarer.
"""

from __future__ import annotations

from collections.abc import Sequence

_GRAM = 3
"""Tokens that must have stood before in the same order."""
MAX_DRAFT = 15
_MAX_PAUSE = 127


class PromptLookup:
    """Finds where the last tokens of a growing sequence stood before."""

    def __init__(self) -> None:
        self._followers: dict[tuple[int, ...], int] = {}
        self._num_indexed = _GRAM

    def draft(self, ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """Return what may follow `ids`, at most `max_tokens`; `ids` begins with those of the last call."""
        for position in range(self._num_indexed, len(ids)):
            self._followers[tuple(ids[position - _GRAM : position])] = position
        self._num_indexed = max(self._num_indexed, len(ids))
        start = self._followers.get(tuple(ids[-_GRAM:]))
        if start is None:
            return ()
        # What follows may reach the end: then it goes round, for the sequence has begun to repeat itself.
        period = len(ids) - start
        return tuple(ids[start + offset % period] for offset in range(max_tokens))


class Speculation:
    """One answer's drafts: how long the next one is, after how those before have paid.

    The first draft is a single token. One that is accepted whole is followed by one twice as long; one that
    took longer than its tokens would have taken one by one, by a pause that doubles each time.
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

    def draft(self, ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        """Return what the tokens after `ids` may be, possibly nothing."""
        if self._num_to_wait:
            self._num_to_wait -= 1
            return ()
        return self._lookup.draft(ids, min(self._length, max_tokens))

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
    """How long a decode step of one row takes."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def record(self, seconds: float) -> None:
        """Take note of a plain step's duration; one hiccup counts little."""
        if self._seconds:
            seconds = min(seconds, 2 * self._seconds)
        self._seconds += (0.1 if self._seconds else 1.0) * (seconds - self._seconds)

    def pays(self, seconds: float, num_tokens: int) -> bool:
        """Tell whether `num_tokens` in `seconds` are no slower than one by one; unknown counts as yes."""
        return not self._seconds or seconds <= self._seconds * num_tokens
