"""What holds for all that we ask of Discord: who must wait for how long, and whether it answers at all.

Knows nothing of what is asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Literal

import aiohttp
import discord
from aiohttp import TraceRequestEndParams as _Answered
from aiohttp import TraceRequestExceptionParams as _Failed
from discord.backoff import ExponentialBackoff

from bot.delivery.budget import RequestBudget
from bot.fleet.fleet import Fleet

_log = logging.getLogger(__name__)

MAX_WAIT_S = 30.0
"""A rate limit that lasts longer is an error to whoever asked, who then decides when to ask again."""
SHORT_WAIT_S = 3.0
CONNECT_TIMEOUT_S = 10.0
"""Not for the first one: nothing comes after that if it fails."""
LONGEST_PAUSE_S = 15.0
"""With the above and a new session: back within half a minute of Discord."""
SESSION_INTERVAL_S = 5.25
"""A little more than the five seconds that Discord wants: not all requests are equally fast."""


class Traffic:
    """Watches every request. `on_return` is called when Discord answers again after it did not.

    A ban of Cloudflare's and a global rate limit hold for all requests alike. While they last none is made:
    each fails at once with `discord.RateLimited`, or waits where that takes seconds only. (discord.py knows
    nothing of the one. In the other it waits, and whoever is cancelled meanwhile leaves every later request
    waiting for ever.) A request that `budget` has no room for waits; while `may_act` says no, since another
    process may be acting for our servers, none is made either.
    """

    def __init__(
        self,
        on_return: Callable[[], None],
        budget: RequestBudget | None = None,
        may_act: Callable[[], bool] = lambda: True,
    ) -> None:
        self._on_return = on_return
        self._budget = budget or RequestBudget()
        self._may_act = may_act
        self._closed_until_s = 0.0
        self._is_away = False
        self._line = asyncio.Lock()
        self.trace = aiohttp.TraceConfig()
        self.trace.on_request_start.append(self._before)
        self.trace.on_request_end.append(self._after)
        self.trace.on_request_exception.append(self._failed)

    async def _before(
        self,
        _session: aiohttp.ClientSession,
        _context: SimpleNamespace,
        asked: aiohttp.TraceRequestStartParams,
    ) -> None:
        if asked.url.scheme in ("ws", "wss"):
            return
        self._check_may_act()
        wait_s = self._closed_until_s - _now_s()
        if wait_s > SHORT_WAIT_S:
            raise discord.RateLimited(wait_s)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if _counts(asked.url.path):
            await self._take_turn()
        self._check_may_act()  # once more: others may act by now, if this process stood still meanwhile

    def _check_may_act(self) -> None:
        if not self._may_act():
            raise discord.RateLimited(SHORT_WAIT_S)

    async def _take_turn(self) -> None:
        """Wait until there is room for one more request, in the order of those who ask."""
        async with self._line:
            await asyncio.sleep(self._budget.wait_s(_now_s()))
            self._budget.note(_now_s())

    async def _after(
        self, _session: aiohttp.ClientSession, _context: SimpleNamespace, asked: _Answered
    ) -> None:
        response = asked.response
        if response.status == 429 and _holds_for_all(response):
            wait_s = retry_after_s(response) or MAX_WAIT_S
            _log.warning("Discord takes no requests of ours for %.0f s", wait_s)
            self._closed_until_s = max(self._closed_until_s, _now_s() + wait_s)
            self._is_away = True
            response.close()
            raise discord.RateLimited(wait_s)
        was_away, self._is_away = self._is_away, response.status >= 500
        if was_away and not self._is_away:
            self._on_return()

    async def _failed(
        self, _session: aiohttp.ClientSession, _context: SimpleNamespace, asked: _Failed
    ) -> None:
        if not isinstance(asked.exception, discord.RateLimited):
            self._is_away = True


class Attempts:
    """How long to wait before the next of several attempts: ever longer while they come close together.

    The first `num_free` within `window_s` wait for nothing. Pure: times are values it is given.
    """

    def __init__(self, *, num_free: int, first_s: float, longest_s: float, window_s: float) -> None:
        self._num_free, self._first_s, self._longest_s = num_free, first_s, longest_s
        self._window_s = window_s
        self._times_s: deque[float] = deque(maxlen=max(64, 2 * num_free))

    def note(self, at_s: float) -> None:
        """Count an attempt."""
        self._times_s.append(at_s)

    def wait_s(self, at_s: float) -> float:
        """Return for how long to wait still."""
        num_more = sum(at_s - one < self._window_s for one in self._times_s) - self._num_free
        if num_more < 0:
            return 0.0
        return self._times_s[-1] + min(self._first_s * 2.0**num_more, self._longest_s) - at_s


class Gateway:
    """Connects to the gateway, gently also where it takes every connection and then ends it.

    discord.py tries again at once in that case; where nothing is there it waits for longer and longer, up
    to 17 minutes. Discord takes 1,000 new sessions a day.
    """

    def __init__(self, client: discord.Client, fleet: Fleet) -> None:
        num = 3 * len(fleet.shards)
        self._connects = Attempts(num_free=num, first_s=4.0, longest_s=10.0, window_s=60.0)
        self._sessions = Attempts(num_free=num, first_s=30.0, longest_s=120.0, window_s=600.0)
        self._fleet = fleet
        self.max_concurrency = 1
        """Of shards that differ by their number modulo this, each may begin a session at the same time."""
        self._begun_at_s: dict[int, float] = {}
        self._open = client.http.ws_connect
        self._has_connected = False

    async def connect(self, url: str, *, compress: int = 0) -> aiohttp.ClientWebSocketResponse:
        """Open a connection in its turn. Raises `TimeoutError` where it is not to be had for now."""
        wait_s = max(attempts.wait_s(_now_s()) for attempts in (self._connects, self._sessions))
        await asyncio.sleep(min(max(wait_s, 0.0), MAX_WAIT_S))
        if wait_s > MAX_WAIT_S:
            raise TimeoutError  # too many sessions were begun lately
        self._connects.note(_now_s())
        async with asyncio.timeout(CONNECT_TIMEOUT_S if self._has_connected else None):
            socket = await self._open(url, compress=compress)
        self._has_connected = True
        return socket

    async def before_session(self, shard_id: int | None, *, is_first: bool) -> None:
        """Wait as Discord wants it between two new sessions, in step with all other processes.

        Raises `TimeoutError` where too many others wait.
        """
        self._sessions.note(_now_s())
        bucket = (shard_id or 0) % self.max_concurrency
        if self._fleet.has_others:
            await self._fleet.turn(f"identify:{bucket}")
        elif len(self._fleet.shards) > 1:
            due_s = self._begun_at_s.get(bucket, -SESSION_INTERVAL_S) + SESSION_INTERVAL_S
            await asyncio.sleep(max(0.0, due_s - _now_s()))
            self._begun_at_s[bucket] = _now_s()
        elif not is_first:
            await asyncio.sleep(SESSION_INTERVAL_S)


class ShortBackoff(ExponentialBackoff[Literal[False]]):
    """discord.py's pauses between connections that fail, of which none is long."""

    def delay(self) -> float:
        """Return the next pause in seconds; no two bots come back at the same time."""
        pause_s: float = super().delay()
        half_s = LONGEST_PAUSE_S / 2
        return pause_s if pause_s < LONGEST_PAUSE_S else half_s + pause_s % half_s


def retry_after_s(response: object) -> float | None:
    """Return for how long a response wants no more requests."""
    try:
        return float(response.headers["Retry-After"])  # type: ignore[attr-defined]
    except (AttributeError, KeyError, ValueError):
        return None


def _counts(path: str) -> bool:
    """Tell whether a request counts for the limit of the whole bot: answers to interactions do not."""
    return "/interactions/" not in path and "/webhooks/" not in path


def _holds_for_all(response: aiohttp.ClientResponse) -> bool:
    """Tell whether a status of 429 is no limit of a route: Discord's own responses name a proxy in `Via`."""
    return "Via" not in response.headers or "X-RateLimit-Global" in response.headers


def _now_s() -> float:
    return asyncio.get_running_loop().time()
