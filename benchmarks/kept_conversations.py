"""Which conversations to keep the KV of: by how long ago they were used, or by how likely they go on.

    python -m benchmarks.kept_conversations

A year of a server is made up: channels of Zipf popularity, each with its own hours, whose questions come in
bursts; histories grow to their limit and lose half of themselves then. Nothing is run: for each rule it is
counted how many tokens of the prompts would have been kept. The last rule knows the future: none is better.
The rows of the bot are its own books of the cache: told nothing of what is likely, told by its own guess, and
with what is likely computed ahead.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import math
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmarks.common import print_table
from bot.conversation.idle import MAX_CONVERSATIONS, OF_LATE, likeliest
from engine.cpu.kv_slots import KVSlots
from engine.runtime.request import is_all_kept
from storage.types import Asked

DAY_S = 86_400.0
AWAKE = 0.395
"""The share of bursts that a day's hours let through."""
UNIT = 16
"""Tokens that count as one in the bot's own books, for the sake of time."""
QUIET_S = 5.0
"""How long nobody must ask for what is expected to be told, and computed."""
SYSTEM_TOKENS, LIMIT_TOKENS, ANSWER_TOKENS = 40, 3072, 512


@dataclass(frozen=True, slots=True)
class Turn:
    """A question: when and where, how many tokens its prompt has, and how many with the answer.

    num_known: tokens that the prompt shares with the conversation's last one and its answer.
    """

    at: float
    channel: int
    num_known: int
    num_prompt: int
    num_held: int


@dataclass(frozen=True, slots=True)
class Year:
    """What makes a server: its channels, its questions a day, and how steeply popularity falls."""

    num_channels: int = 200
    questions_a_day: float = 274.0
    zipf: float = 1.0
    days: int = 365
    burst: float = 5.0
    """Questions of a burst, on average."""
    pause_s: float = 90.0
    """Within a burst, in the median."""

    def turns(self, seed: int) -> list[Turn]:
        """Return all questions in order."""
        rng = random.Random(seed)
        weights = [1 / (rank + 1) ** self.zipf for rank in range(self.num_channels)]
        asked = [
            (at, channel)
            for channel, weight in enumerate(weights)
            for at in self._channel(rng, self.questions_a_day * weight / sum(weights))
        ]
        lengths = defaultdict[int, int](lambda: SYSTEM_TOKENS)
        turns = []
        for at, channel in sorted(asked):
            known = lengths[channel]
            question = 8 + min(600, int(rng.lognormvariate(3.0, 0.9)))
            answer = min(ANSWER_TOKENS, 4 + int(rng.lognormvariate(4.6, 0.8)))
            if known + question > LIMIT_TOKENS:
                lengths[channel] = known = SYSTEM_TOKENS + (LIMIT_TOKENS - SYSTEM_TOKENS) // 2
                num_known = SYSTEM_TOKENS
            else:
                num_known = known
            turns.append(Turn(at, channel, num_known, known + question, known + question + answer))
            lengths[channel] += question + answer
        return turns

    def _channel(self, rng: random.Random, a_day: float) -> Iterator[float]:
        """Yield when questions of one channel come: in bursts, most of them in its evenings."""
        evening = rng.gauss(20.0, 3.0)
        at = 0.0
        while True:
            at += rng.expovariate(a_day / self.burst / DAY_S / AWAKE)
            if at >= self.days * DAY_S:
                return
            hour = (at / 3600 - evening) / 24 * 2 * math.pi
            if rng.random() > (1 + math.cos(hour)) ** 2 / 4 + 0.02:
                continue
            moment = at
            for _ in range(1 + int(rng.expovariate(1 / max(self.burst - 1, 0.01)))):
                yield moment
                moment += rng.lognormvariate(math.log(self.pause_s), 1.0)


class Rule:
    """Which conversations go first: those with the lowest `worth`."""

    def __init__(self) -> None:
        self.last: dict[int, float] = {}

    def use(self, channel: int, at: float) -> None:
        """Learn that a conversation goes on."""
        self.last[channel] = at

    def drop(self, channel: int) -> None:
        """Learn that it is not kept any more."""

    def worth(self, channel: int, at: float) -> float:
        """Return how likely it goes on soon."""
        return self.last[channel] - at


class Decayed(Rule):
    """Each use counts, less and less: weights and times of the parts. remembers: beyond eviction too."""

    def __init__(self, *parts: tuple[float, float], remembers: bool) -> None:
        super().__init__()
        self._parts = parts
        self._remembers = remembers
        self._sums: dict[int, list[float]] = {}

    def use(self, channel: int, at: float) -> None:
        sums = self._now(channel, at) if channel in self._sums else [0.0] * len(self._parts)
        self._sums[channel] = [one + 1 for one in sums]
        super().use(channel, at)

    def drop(self, channel: int) -> None:
        if not self._remembers:
            del self._sums[channel]

    def worth(self, channel: int, at: float) -> float:
        return sum(weight * one for (weight, _), one in zip(self._parts, self._now(channel, at), strict=True))

    def _now(self, channel: int, at: float) -> list[float]:
        passed = at - self.last[channel]
        sums = zip(self._parts, self._sums[channel], strict=True)
        return [one * math.exp(-passed / time_s) for (_, time_s), one in sums]


class Rates(Decayed):
    """As `bot.conversation.idle.likeliest`: the rate of a burst, by its age, and that of the last days."""

    def __init__(self, of_burst: float, days: float, *, remembers: bool = True) -> None:
        super().__init__((1 / (days * DAY_S), days * DAY_S), remembers=remembers)
        self._of_burst = of_burst

    def worth(self, channel: int, at: float) -> float:
        return self._of_burst / (at - self.last[channel] + 60.0) + super().worth(channel, at)


class Hazard(Rule):
    """How often a channel's pauses, and all channels', ended at this age: a rate for each class of ages."""

    edges = tuple(30.0 * 2**power for power in range(18))
    _PRIOR = 3.0

    def __init__(self) -> None:
        super().__init__()
        size = len(self.edges) + 1
        self._ended = defaultdict[int, list[float]](lambda: [0.0] * size)
        self._lived = defaultdict[int, list[float]](lambda: [0.0] * size)

    def use(self, channel: int, at: float) -> None:
        if channel in self.last:
            gap = at - self.last[channel]
            for which in (channel, -1):
                self._learn(which, gap)
        super().use(channel, at)

    def _learn(self, which: int, gap: float) -> None:
        begin = 0.0
        for number, edge in enumerate((*self.edges, math.inf)):
            self._lived[which][number] += min(gap, edge) - begin
            if gap <= edge:
                self._ended[which][number] += 1
                return
            begin = edge

    def worth(self, channel: int, at: float) -> float:
        number = bisect.bisect_left(self.edges, at - self.last[channel])
        of_all: float = (self._ended[-1][number] + 0.1) / (
            self._lived[-1][number] + self.edges[min(number, 17)]
        )
        prior_s = self._PRIOR / of_all
        return float((self._ended[channel][number] + self._PRIOR) / (self._lived[channel][number] + prior_s))


class Oracle(Rule):
    """Knows when each conversation goes on."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        super().__init__()
        self._times = defaultdict[int, list[float]](list)
        for turn in turns:
            self._times[turn.channel].append(turn.at)

    def worth(self, channel: int, at: float) -> float:
        times = self._times[channel]
        following: int = bisect.bisect_right(times, at)
        return float(-times[following]) if following < len(times) else -math.inf


def share_kept(turns: Sequence[Turn], rule: Rule, *, max_tokens: int, max_kept: int) -> float:
    """Return the share of the tokens that could have been kept for their next question, and were."""
    kept: dict[int, int] = {}
    total = num_hit = num_known = 0
    for turn in turns:
        num_known += turn.num_known
        if turn.channel in kept:
            num_hit += turn.num_known
            total -= kept.pop(turn.channel)
        rule.use(turn.channel, turn.at)
        while kept and (total + turn.num_held > max_tokens or len(kept) >= max_kept):
            _, worst = min((rule.worth(channel, turn.at), channel) for channel in kept)
            total -= kept.pop(worst)
            rule.drop(worst)
        kept[turn.channel] = turn.num_held
        total += turn.num_held
    return num_hit / num_known


def share_kept_by_bot(
    turns: Sequence[Turn], *, max_tokens: int, max_kept: int, tells: bool, computes: bool
) -> float:
    """Return what `share_kept` does, as the bot keeps it.

    tells: what is expected is told to the cache. computes: and computed ahead.
    """
    slots = KVSlots(max_kept, max_tokens // UNIT)
    asked = defaultdict[int, deque[float]](deque)
    next_ids: dict[int, Sequence[int]] = {}
    num_hit = num_known = 0
    last_at = 0.0
    for number, turn in enumerate(turns):
        if tells and turn.at - last_at > QUIET_S:
            _expect(slots, asked, next_ids, last_at, computes=computes)
        last_at = turn.at
        # A stride, after which a prompt begins with the system prompt alone as before, changes all ids.
        is_new = turn.num_known <= SYSTEM_TOKENS or turn.channel not in next_ids
        first = (number + 1) * 10_000 if is_new else next_ids[turn.channel][0]
        ids = range(first, first + turn.num_held // UNIT)
        placement = slots.acquire(ids[: turn.num_prompt // UNIT], len(ids))
        # The last two are computed in any case, and here these are units.
        num_hit += min((placement.num_cached + 3) * UNIT, turn.num_known) if placement.num_cached else 0
        num_known += turn.num_known
        slots.extend(placement.slot, ids[placement.num_cached :])
        slots.release(placement.slot)
        next_ids[turn.channel] = ids
        asked[turn.channel].append(turn.at)
    return num_hit / num_known


def _expect(
    slots: KVSlots,
    asked: Mapping[int, deque[float]],
    next_ids: Mapping[int, Sequence[int]],
    at: float,
    *,
    computes: bool,
) -> None:
    """Tell the cache which conversations are likely to go on, as the bot does while nobody asks."""
    late = []
    for channel, times in asked.items():
        while times and times[0] < at - OF_LATE.total_seconds():
            times.popleft()
        if times:
            late.append(Asked(channel, len(times), _moment(times[-1])))
    for channel in itertools.islice(likeliest(late, _moment(at)), MAX_CONVERSATIONS):
        ids = next_ids[channel]
        if is_all_kept(slots.find_ahead(ids), ids) or not computes:
            continue
        placement = slots.acquire_ahead(ids)
        if placement is None:
            return
        slots.extend(placement.slot, ids[placement.num_cached :])
        slots.release(placement.slot)


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


MINUTE, HOUR = 60.0, 3600.0
RULES: dict[str, Callable[[Sequence[Turn]], Rule]] = {
    "least recently used": lambda _: Rule(),
    "uses, 10 min": lambda _: Decayed((1.0, 10 * MINUTE), remembers=True),
    "uses, 1 h": lambda _: Decayed((1.0, HOUR), remembers=True),
    "uses, 6 h": lambda _: Decayed((1.0, 6 * HOUR), remembers=True),
    "uses, 1 day": lambda _: Decayed((1.0, DAY_S), remembers=True),
    "uses, 10 min and 1 day": lambda _: Decayed((1.0, 10 * MINUTE), (0.05, DAY_S), remembers=True),
    "hazard of its pauses": lambda _: Hazard(),
    "rates, 1 day": lambda _: Rates(0.5, 1),
    "rates, 7 days": lambda _: Rates(0.5, 7),
    "rates, 30 days": lambda _: Rates(0.5, 30),
    "rates, 7 days, while kept": lambda _: Rates(0.5, 7, remembers=False),
    "the future": Oracle,
}
BOTS = (("the bot, told nothing", False, False), ("the bot, told", True, False), ("the bot", True, True))
CAPACITIES = ((8_192, 16), (24_576, 16), (46_603, 16), (46_603, 32), (262_144, 10_000))
"""Tokens and conversations at most: 7B on a CPU, less memory, the default model, more slots, and a GPU."""


def main() -> None:
    """Print a table for each kind of year."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--days", type=int, default=365)
    arguments = parser.parse_args()
    years = {
        "274 questions a day": Year(days=arguments.days),
        "2,740 questions a day": Year(days=arguments.days // 5, questions_a_day=2740),
        "274 a day, steep": Year(days=arguments.days, zipf=1.4),
    }
    for name, year in years.items():
        made = [year.turns(seed) for seed in range(arguments.seeds)]
        rows = []
        for rule, make in RULES.items():
            rows.append([rule])
            for tokens, kept in CAPACITIES:
                shares = [share_kept(turns, make(turns), max_tokens=tokens, max_kept=kept) for turns in made]
                rows[-1].append(f"{sum(shares) / len(shares):.1%}")
        for kept_as, tells, computes in BOTS:
            rows.append([kept_as])
            for tokens, kept in CAPACITIES:
                num_slots = min(kept, 2 * year.num_channels)
                shares = [
                    share_kept_by_bot(
                        turns, max_tokens=tokens, max_kept=num_slots, tells=tells, computes=computes
                    )
                    for turns in made
                ]
                rows[-1].append(f"{sum(shares) / len(shares):.1%}")
        columns = ["kept by", *(f"{tokens:,} of {kept:,}" for tokens, kept in CAPACITIES)]
        print_table(f"{name}, {sum(map(len, made)) // len(made):,} questions", columns, rows)


if __name__ == "__main__":
    main()
