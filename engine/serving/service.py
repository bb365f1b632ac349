"""What all requests share: the engine, its waiting room, the keys, the figures, and whether we are closing.

Knows nothing of HTTP but the errors that clients are told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial

from engine.errors import EngineError
from engine.serving.errors import UNAVAILABLE_S, ApiError, refusal
from engine.serving.keys import ApiKey, KeyRing
from engine.serving.metrics import Metrics
from engine.serving.requests import Asked, ServedEngine
from engine.types import Generation, Health
from engine.waiting.room import WaitingRoom

_log = logging.getLogger(__name__)

_MAX_RETRY_S = 120
_FIRST_GUESS_S = 5.0
_WEIGHT_OF_LATEST = 0.2


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How the engine is served. Without keys anybody may ask; see `KeyRing` for what they limit.

    max_waiting: requests that may wait for their turn. max_body_bytes: of a request. grace_s: how
    long running answers may take to end when the server is told to. is_private: only this machine reaches
    the server.
    """

    keys: tuple[ApiKey, ...] = ()
    max_waiting: int = 64
    max_body_bytes: int = 4 * 2**20
    grace_s: float = 20.0
    is_private: bool = True


@dataclass(slots=True)
class Record:
    """What is known of one request in the end, for log and figures: nothing that anybody wrote."""

    request_id: str
    key: str = "-"
    tokens: str = ""


class Service:
    """One served engine. Use it on one event loop."""

    def __init__(self, engine: ServedEngine, settings: ServingSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.files = engine.text_files()
        self.fingerprint = self.files.fingerprint
        self.instance = secrets.token_hex(8)
        self.created = int(time.time())
        self.keys = KeyRing(settings.keys)
        self.keys_besides = KeyRing(settings.keys)
        """The same keys for what is no answer: with the same limits once more, so that it costs no answer."""
        self.room = WaitingRoom(lambda: engine.load, max_waiting=settings.max_waiting)
        self.metrics = Metrics()
        self.is_draining = False
        self._turn_s = _FIRST_GUESS_S
        self._to_turn_away: set[Callable[[], object]] = set()
        self.num_open = self.num_body_bytes = 0
        self._closed = asyncio.Event()
        self.tell_others: Callable[[], Awaitable[object]] = _nobody
        """Has other replicas forget, where clients cannot reach them by addresses of their own."""
        self._watch()

    @property
    def state(self) -> str:
        """Return in a word what can be expected: ready, draining, recovering, unhealthy or closed."""
        health = self.engine.health
        return "draining" if self.is_draining and health is Health.READY else str(health)

    def check_open(self) -> None:
        """Raise the `ApiError` of a server that takes no requests now."""
        state = self.state
        if state != "ready":
            raise ApiError(
                503,
                f"The server is {state} and takes no requests now. Try again later.",
                code=state,
                retry_after_s=UNAVAILABLE_S,
            )

    async def forget(self) -> None:
        """Forget what was computed of deleted texts, here and at `tell_others`. Raises `ApiError`."""
        self.engine.drop_idle_cache()
        try:
            await self.tell_others()
        except Exception as error:
            _log.warning("Not all replicas could be told to forget: %s", type(error).__name__)
            raise ApiError(
                503,
                "Not all replicas could be told to forget. Try again.",
                code="not_told",
                retry_after_s=UNAVAILABLE_S,
            ) from error

    @property
    def retry_after_s(self) -> int:
        """Estimate after how many seconds another request would be taken, from what those in line take."""
        num_before = self.room.num_in_line + 1
        wait_s = num_before * self._turn_s / max(self.engine.load.max_requests, 1)
        return min(max(math.ceil(wait_s), 1), _MAX_RETRY_S)

    @contextlib.asynccontextmanager
    async def answering(
        self, asked: Asked, keys: tuple[Hashable, ...], tell: Callable[[int], object]
    ) -> AsyncIterator[Generation]:
        """Give the answer once its turn has come; what is left of it at the end is cancelled.

        keys: who asks, from the widest group to the narrowest. tell: learns the place in line, and 0 at the
        end of waiting. Raises `ApiError`.
        """
        try:
            async with self.room.generating(
                self.engine, asked.prompt, asked.params, keys, tell=tell
            ) as generation:
                tell(0)
                began_s = asyncio.get_running_loop().time()
                yield generation
            took_s = asyncio.get_running_loop().time() - began_s
            self._turn_s += _WEIGHT_OF_LATEST * (took_s - self._turn_s)
        except EngineError as error:
            raise refusal(error, retry_after_s=self.retry_after_s) from error

    @contextlib.contextmanager
    def open(self, turn_away: Callable[[], object]) -> Iterator[Callable[[], None]]:
        """Count a request until the end of the `with`, whose value is to be called when its answer begins.

        turn_away: called when the server closes before that.
        """
        self.num_open += 1
        self._to_turn_away.add(turn_away)
        try:
            yield lambda: self._to_turn_away.discard(turn_away)
        finally:
            self._to_turn_away.discard(turn_away)
            self.num_open -= 1
            if self.is_draining and not self.num_open:
                self._closed.set()

    async def drain(self) -> bool:
        """Take nothing any more, turn away who waits, and let the others end; return whether they did."""
        self.is_draining = True
        for turn_away in list(self._to_turn_away):
            turn_away()
        if not self.num_open:
            return True
        try:
            async with asyncio.timeout(self.settings.grace_s):
                await self._closed.wait()
        except TimeoutError:
            return False
        return True

    def _watch(self) -> None:
        """Have the figures read that stand still."""
        engine, watch = self.engine, self.metrics.watch
        watch("requests_open", "Answers running or waiting.", lambda: self.num_open)
        watch("requests_waiting", "Answers waiting for their turn.", lambda: self.room.num_in_line)
        watch("requests_running", "Answers being made.", lambda: engine.load.num_requests)
        watch("requests_running_max", "Answers made at once at most.", lambda: engine.load.max_requests)
        watch("kv_tokens", "Tokens whose KV is held.", lambda: engine.load.num_kv_tokens)
        watch("kv_tokens_reserved", "Tokens that answers may need.", lambda: engine.load.num_reserved_tokens)
        watch("kv_tokens_max", "Tokens whose KV may be held.", lambda: engine.load.max_kv_tokens)
        watch("is_draining", "1 while the server is closing.", lambda: self.is_draining)
        for health in Health:
            watch(f"is_{health}", f"1 while the engine is {health}.", partial(self._is, health))

    def _is(self, health: Health) -> bool:
        return self.engine.health is health


async def _nobody() -> None:
    """Tell nobody: a server is alone, or its clients know the others."""
