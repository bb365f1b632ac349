"""What crosses the network, and how it can fail. Knows no library: `http_wire.py` has the one we use."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

MAX_LINE_BYTES = 2**20
MAX_REPLY_BYTES = 2**20
"""Of what is no file."""
MAX_RETRY_S = 60.0


class WireError(Exception):
    """Nothing came from a server, or nothing more: it is away, broke off, fell silent, or talks nonsense.

    has_begun: whether it may have taken the request.
    """

    def __init__(self, reason: str, *, has_begun: bool = False) -> None:
        self.has_begun = has_begun
        super().__init__(reason)


class RefusedError(Exception):
    """A server said no. code: its word for the reason. retry_after_s: when to ask again, 0 if unsaid."""

    def __init__(self, status: int, message: str, code: str = "", retry_after_s: float = 0.0) -> None:
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        super().__init__(message)

    @classmethod
    def of(cls, status: int, body: bytes, retry_after: str = "") -> RefusedError:
        """Read what a server said, which may be anything."""
        told = re.fullmatch(r"\s*(\d{1,6})\s*", retry_after, re.ASCII)
        wait_s = min(float(told[1]), MAX_RETRY_S) if told else 0.0
        try:
            error = parse_object(body).get("error")
        except WireError:
            error = None
        error = error if isinstance(error, dict) else {}
        message, code = error.get("message"), error.get("code")
        return cls(
            status,
            one_line(message) if isinstance(message, str) else f"The server answered with status {status}.",
            code[:64] if isinstance(code, str) else "",
            wait_s,
        )


@dataclass(frozen=True, slots=True)
class Patience:
    """How long we wait for what, in seconds. silence_s: for the next line of an answer, as a server says at
    least every few seconds that it lives. ask_s: for a short reply. away_s: for any server to come back.
    """

    connect_s: float = 5.0
    silence_s: float = 30.0
    ask_s: float = 10.0
    away_s: float = 600.0
    busy_poll_s: float = 1.0
    idle_poll_s: float = 5.0


class Wire(Protocol):
    """Asks servers by their addresses. Everything raises `WireError` and `RefusedError`."""

    async def get(self, address: str, path: str, *, max_bytes: int = MAX_REPLY_BYTES) -> bytes:
        """Return the body of an answer."""

    async def post(self, address: str, path: str) -> None:
        """Have something done that needs no body and says nothing."""

    def stream(
        self, address: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Ask for an answer, and give its bytes as they come; leaving ends it at the server."""

    async def close(self) -> None:
        """Close all connections."""


def parse_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object. Raises `WireError`."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise WireError("it does not talk JSON", has_begun=True) from None
    if not isinstance(value, dict):
        raise WireError("it does not talk as expected", has_begun=True)
    return value


def one_line(text: str) -> str:
    """Return what somebody else wrote so that it can stand in a log."""
    return "".join(character if character.isprintable() else " " for character in text[:200])


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event: data, or a comment, by which a server says that it lives."""

    data: bytes = b""
    comment: bytes = b""


class EventReader:
    """Takes server-sent events out of bytes, wherever these are cut. What has no end is no event."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._num_bytes = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that are whole now. Raises `WireError` for one that is too long."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = [event for line in lines if (event := self._take(line.removesuffix(b"\r"))) is not None]
        if len(self._rest) + self._num_bytes > MAX_LINE_BYTES:
            raise WireError("it sends lines without an end", has_begun=True)
        return events

    def _take(self, line: bytes) -> Event | None:
        if not line:
            data, self._data, self._num_bytes = b"\n".join(self._data), [], 0
            return Event(data=data) if data else None
        if line.startswith(b":"):
            return Event(comment=line[1:].strip() or b" ")
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._num_bytes += len(line)
        return None
