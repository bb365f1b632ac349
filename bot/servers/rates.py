"""What is counted of questions: how many a person and a server ask, which come again, and who was told what.

The operator's limits hold everywhere; a server can only be stricter. Pure: a clock is given.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from bot.errors import RateLimitedError, RefusalError
from bot.servers.server_config import ServerConfig

K = TypeVar("K")
V = TypeVar("V")

MAX_BUCKETS = 50_000
MAX_TEXTS = 10_000
MAX_KEPT = 10_000
MAX_TIMES = 5
WINDOW_S = 60.0
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """Questions a minute that the operator allows; 0 is no limit."""

    per_user: int = 10
    per_server: int = 120


class RateLimits:
    """Counts questions against the limits."""

    def __init__(self, allowance: Allowance, clock: Callable[[], float]) -> None:
        self._allowance = allowance
        self._buckets = Buckets(clock)

    def admit(self, user_id: int, guild_id: int | None, config: ServerConfig) -> None:
        """Count one question. Raises `RateLimitedError`, and then counts nothing."""
        self.check(user_id, guild_id, config)
        of_person, of_server = self._rates(user_id, guild_id, config)
        self._buckets.take((*of_person, *of_server))

    def check(self, user_id: int, guild_id: int | None, config: ServerConfig) -> None:
        """Raise `RateLimitedError` where no question is allowed now; nothing is counted."""
        of_person, of_server = self._rates(user_id, guild_id, config)
        wait_s = max((self._buckets.wait_s(rate) for rate in of_person), default=0.0)
        if wait_s > 0:
            raise RateLimitedError(wait_s, is_server=False)
        wait_s = max((self._buckets.wait_s(rate) for rate in of_server), default=0.0)
        if wait_s > 0:
            raise RateLimitedError(wait_s, is_server=True)

    def _rates(
        self, user_id: int, guild_id: int | None, config: ServerConfig
    ) -> tuple[list[Rate], list[Rate]]:
        of_person = _rate(("user", user_id), self._allowance.per_user)
        if guild_id is None:
            return of_person, []
        of_person += _rate(("member", guild_id, user_id), config.user_per_minute)
        of_server = _rate(("server", guild_id), self._allowance.per_server)
        of_server += _rate(("own", guild_id), config.server_per_minute)
        return of_person, of_server


def _rate(key: tuple[str | int, ...], per_minute: int | None) -> list[Rate]:
    return [Rate(key, per_minute)] if per_minute else []


class Repetitions:
    """Counts how often a text came lately."""

    def __init__(self, clock: Callable[[], float], *, max_texts: int = MAX_TEXTS) -> None:
        self._clock = clock
        self._max_texts = max_texts
        self._seen: OrderedDict[bytes, tuple[float, ...]] = OrderedDict()
        """By digest, when the text came, at most `MAX_TIMES` times."""

    def is_loop(self, user_id: int, channel_id: int, text: str) -> bool:
        """Count one more coming of `text`; tell whether it came too often within the window."""
        words = " ".join(text.casefold().split())
        key = hashlib.blake2b(f"{user_id} {channel_id} {words}".encode("utf-8", "replace")).digest()
        now_s = self._clock()
        times = tuple(at_s for at_s in self._seen.get(key, ()) if now_s - at_s < WINDOW_S)
        is_loop = len(times) >= MAX_TIMES
        _remember(self._seen, key, (*times, now_s)[-MAX_TIMES:], self._max_texts)
        return is_loop


class RefusalPace:
    """Remembers whom a refusal was told lately, so that it is not told again and again."""

    def __init__(self, clock: Callable[[], float], *, max_kept: int = MAX_KEPT) -> None:
        self._clock = clock
        self._max_kept = max_kept
        self._quiet_until_s: OrderedDict[tuple[int, int, str], float] = OrderedDict()

    def may_tell(self, user_id: int, guild_id: int | None, refusal: RefusalError) -> bool:
        """Tell whether to answer with `refusal`, and if so count it as said."""
        key = (user_id, guild_id or 0, type(refusal).__name__)
        now_s = self._clock()
        if self._quiet_until_s.get(key, now_s) > now_s:
            return False
        _remember(self._quiet_until_s, key, now_s + refusal.quiet_s, self._max_kept)
        return True


@dataclass(frozen=True, slots=True)
class Rate:
    """What is limited, and to how many a minute; as many may come at once after a quiet minute."""

    key: Hashable
    per_minute: int


class Buckets:
    """Full at first; each act takes one token, and time brings them back."""

    def __init__(self, clock: Callable[[], float], *, max_buckets: int = MAX_BUCKETS) -> None:
        self._clock = clock
        self._max_buckets = max_buckets
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """Tokens, and when there were so many. The least recently used are forgotten, and so are full."""

    def wait_s(self, rate: Rate) -> float:
        """Return how long it takes until a token can be taken; 0 for now."""
        missing = 1.0 - self._level(rate)
        return max(0.0, missing * _MINUTE_S / rate.per_minute) if missing > 1e-9 else 0.0

    def take(self, rates: Iterable[Rate]) -> None:
        """Take a token from each, whether there is one or not: ask `wait_s` first."""
        now_s = self._clock()
        for rate in rates:
            _remember(self._levels, rate.key, (max(0.0, self._level(rate) - 1.0), now_s), self._max_buckets)

    def _level(self, rate: Rate) -> float:
        capacity = float(rate.per_minute)
        level, at_s = self._levels.get(rate.key, (capacity, 0.0))
        return min(capacity, level + (self._clock() - at_s) * rate.per_minute / _MINUTE_S)


def _remember(kept: OrderedDict[K, V], key: K, value: V, max_kept: int) -> None:
    """Keep a value; of too many, what was longest not touched is forgotten."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > max_kept:
        kept.popitem(last=False)


def loop_seconds() -> float:
    """Return the running event loop's time."""
    return asyncio.get_running_loop().time()
