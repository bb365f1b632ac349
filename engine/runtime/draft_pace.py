"""How many tokens a small model drafts of a conversation, and whether that pays at all. Pure.

What a draft brings follows from how many of its tokens are accepted, what it costs from measured times. Each
conversation learns the former for itself, beginning with what is usual; where its tokens took longer with
drafts than they would have without, it goes on without, longer each time.
"""

from __future__ import annotations

LONGEST = 8
"""Tokens of a draft of a small model."""
_USUAL_SHARE, _USUAL_WEIGHT = 0.7, 4.0
"""Of drafted tokens that are accepted, before any was seen, and for how many seen ones that counts."""
_FADING = 0.95
"""What the past counts less with each draft."""
_FEWEST_JUDGED, _FEWEST_TRIED = 4, 2
"""Drafts after which it is said whether they pay: the first time, and after each pause."""
_FIRST_PAUSE, _LONGEST_PAUSE = 15, 255
_USUAL_ROW_SHARE = 0.1
"""Of a plain step, what each further row takes, before that was measured."""


class DraftCosts:
    """The seconds of a plain step, of drafting a token, and of each drafted token that is looked at."""

    def __init__(self) -> None:
        self.plain_s = self.draft_s = 0.0
        self._row_s: float | None = None

    @property
    def row_s(self) -> float:
        """Seconds that each row adds to a step."""
        return _USUAL_ROW_SHARE * self.plain_s if self._row_s is None else self._row_s

    def record_plain(self, seconds: float) -> None:
        """Take note of a plain step."""
        self.plain_s = _smoothed(self.plain_s, seconds)

    def record_draft(self, num_drafted: int, draft_s: float, step_s: float) -> None:
        """Take note of a draft and of the step that looked at it."""
        self.draft_s = _smoothed(self.draft_s, draft_s / num_drafted)
        self._row_s = _smoothed(self._row_s or 0.0, max(0.0, step_s - self.plain_s) / num_drafted)

    def seconds(self, num_drafted: int) -> float:
        """Return what a draft of so many tokens and its step take."""
        return self.plain_s + num_drafted * (self.draft_s + self.row_s)


class DraftPace:
    """One conversation's drafts."""

    def __init__(self, costs: DraftCosts) -> None:
        self._costs = costs
        self._share, self._weight = _USUAL_SHARE, _USUAL_WEIGHT
        self._pause = self._num_to_wait = self._num_judged = 0
        self._brought_s = self._took_s = 0.0

    def length(self) -> int:
        """Return how many tokens the next draft best has; 0 where there is to be none."""
        if self._num_to_wait:
            self._num_to_wait -= 1
            return 0
        if not self._costs.plain_s:
            return 0  # what it has to be worth is not known yet
        return max(range(1, LONGEST + 1), key=lambda num: self._expected(num) / self._costs.seconds(num))

    def record(self, num_drafted: int, num_accepted: int, seconds: float) -> None:
        """Learn how a draft turned out that took so long in all, the step that looked at it included."""
        num_seen = num_accepted + (num_accepted < num_drafted)
        weight = _FADING * self._weight + num_seen
        self._share = (_FADING * self._weight * self._share + num_accepted) / weight
        self._weight = weight
        self._brought_s = _FADING * self._brought_s + (num_accepted + 1) * self._costs.plain_s
        self._took_s = _FADING * self._took_s + seconds
        self._num_judged += 1
        if self._num_judged >= (_FEWEST_TRIED if self._pause else _FEWEST_JUDGED):
            self._judge()

    def _judge(self) -> None:
        if self._took_s <= self._brought_s:
            self._pause = 0
            return
        self._pause = min(max(_FIRST_PAUSE, 2 * self._pause + 1), _LONGEST_PAUSE)
        self._num_to_wait, self._num_judged = self._pause, 0
        self._brought_s = self._took_s = 0.0

    def _expected(self, num_drafted: int) -> float:
        """Return how many tokens a draft brings, the one behind those that are accepted included."""
        return sum(self._share**index for index in range(num_drafted + 1))


def _smoothed(known: float, seconds: float) -> float:
    """Return what is known after another measurement; one hiccup counts little."""
    return known + 0.1 * (min(seconds, 2 * known) - known) if known else seconds
