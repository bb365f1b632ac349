"""Server-sent events on their way to a client: what comes close together goes together, silence is filled.

Speaks ASGI; knows nothing of what the events say.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from starlette.types import Send

JOIN_S = 0.05
"""Pieces that come sooner one after another are sent together."""
TICK_S = 1.0
QUIET_TICKS = 5
"""After so long without a word a stream sends a comment, so that nobody between takes it for dead."""
STALLED_S = 60.0
"""A client that reads nothing for so long has left."""
_EVENTS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)


class EventStream:
    """A response of server-sent events, which begins with the first one."""

    def __init__(self, send: Send) -> None:
        self.is_begun = False
        self.place = 0
        """In line; 0 once it has its turn."""
        self._send = send
        self._sending_s: float | None = None
        self._sent_s = 0.0

    @property
    def due_in_s(self) -> float:
        """Seconds until the next piece is to be sent."""
        return self._sent_s + JOIN_S - asyncio.get_running_loop().time()

    async def send(self, events: bytes, *, is_last: bool = False) -> None:
        """Send events; waits while the client reads more slowly than we write."""
        now = asyncio.get_running_loop().time
        self._sending_s = now()
        if not self.is_begun:
            self.is_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(_EVENTS)})
        await self._send({"type": "http.response.body", "body": events, "more_body": not is_last})
        self._sent_s, self._sending_s = now(), None

    async def keep_alive(self) -> None:
        """Send comments while there is nothing else; return when the client reads nothing any more."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            while True:
                await asyncio.sleep(TICK_S)
                if self._sending_s is not None:
                    if loop.time() - self._sending_s > STALLED_S:
                        return
                elif self.place:
                    await self._comment(b"waiting %d" % self.place)
                elif loop.time() - self._sent_s >= QUIET_TICKS * TICK_S:
                    await self._comment(b"")

    async def _comment(self, text: bytes) -> None:
        async with asyncio.timeout(STALLED_S):
            await self.send(b": %s\n\n" % text)


class Words(Protocol):
    """Makes events of a growing text."""

    def piece(self, text: str) -> bytes:
        """Return the events of more of it, nothing while it is not known how to word that."""

    def rest(self) -> bytes:
        """Return those of what was held back."""


class Pieces:
    """Pieces of a text on their way into a stream, as `words` has them.

    One that comes soon after another waits for those behind it, for no longer than `JOIN_S`.
    """

    def __init__(self, stream: EventStream, words: Words, head: bytes) -> None:
        self._stream = stream
        self._words = words
        self._head = head
        self._text = ""
        self._timer: asyncio.TimerHandle | None = None
        self._late: asyncio.Task[None] | None = None

    async def add(self, text: str) -> None:
        """Send a piece, now or soon."""
        self._text += text
        due_in_s = self._stream.due_in_s
        if due_in_s <= 0:
            await self._settle()
            await self._send_taken()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(due_in_s, self._send_late)

    async def end(self, events: bytes) -> None:
        """Send what still waits, and the last events behind it."""
        await self._settle()
        await self._stream.send(self._taken() + self._words.rest() + events, is_last=True)

    def close(self) -> None:
        """Send nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._late is not None:
            self._late.cancel()

    def _send_late(self) -> None:
        self._timer = None
        self._late = asyncio.ensure_future(self._send_taken())

    async def _send_taken(self) -> None:
        if events := self._taken():
            await self._stream.send(events)

    async def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._late is not None:
            await self._late
            self._late = None

    def _taken(self) -> bytes:
        events = self._head + (self._words.piece(self._text) if self._text else b"")
        self._head, self._text = b"", ""
        return events
