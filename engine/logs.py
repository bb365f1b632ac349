"""Logging: one line a record to stderr, with time, level and origin, and never what people wrote.

What is logged of a question carries its id, so that one `grep` finds its whole way, in the engine's log too.
A fault is told with the places it passed, and with its message only where that cannot be people's words.
Third-party libraries are kept at INFO or above even at LOG_LEVEL=debug: at DEBUG, discord.py logs whole
gateway events and aiosqlite whole statements with their values, which is what people wrote.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO

from engine.tracing import note_trace

_OURS = ("bot", "engine", "storage")
_CHATTY = ("httpx", "httpx2")
"""Libraries with a line for each request, of which a download from Hugging Face takes many."""
_NOT_FOR_US = "voice will NOT be supported"
"""discord.py says so at every start; nobody wants to talk to this bot."""
_WEBHOOK_TOKEN = re.compile(r"(/(?:webhooks|interactions)/\d+/)[\w.-]+")
"""discord.py puts it into the address that it warns about."""
_TOLD = (OSError, TypeError, AttributeError, NameError, ImportError, MemoryError, RecursionError)
_WITH_OWN_WORDS = ("engine", "storage")
"""Packages whose exceptions say what is wrong in words of their own."""
_NUMBERS = ("status", "code")
"""What errors of Discord have."""


def configure_logging(
    level: int, *, secret: str | None = None, stream: TextIO | None = None, as_json: bool = False
) -> None:
    """Send all logs to `stream` (stderr), ours from `level` on. `secret` is replaced where it occurs."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(secret) if as_json else LineFormatter(secret))
    handler.addFilter(lambda record: not record.getMessage().endswith(_NOT_FOR_US))
    handler.addFilter(note_trace)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)
    logging.captureWarnings(True)


def set_level(level: int) -> None:
    """Log from `level` on, others' records from INFO on."""
    logging.getLogger().setLevel(max(level, logging.INFO))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in _OURS:
        logging.getLogger(name).setLevel(level)


class LineFormatter(logging.Formatter):
    """Formats a record as one line and leaves secrets out."""

    def __init__(self, secret: str | None) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        self.converter = time.gmtime
        self._secret = secret

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; line breaks, those of a traceback too, become ` | `."""
        line = " | ".join(part for part in super().format(record).splitlines() if part.strip())
        if trace := getattr(record, "trace", ""):
            line = line.replace(f" {record.name}: ", f" {record.name} [{trace}]: ", 1)
        return _without_secrets(line, self._secret)

    def formatException(  # noqa: N802 - the library's name
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """Return the traceback without what may be people's words."""
        return describe_fault(ei[1])


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object on one line and leaves secrets out."""

    def __init__(self, secret: str | None) -> None:
        super().__init__()
        self._secret = secret

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "origin": record.name,
            "message": record.getMessage(),
        }
        if trace := getattr(record, "trace", ""):
            fields["trace"] = trace
        if record.exc_info:
            fields["exception"] = describe_fault(record.exc_info[1])
        return _without_secrets(json.dumps(fields, ensure_ascii=False), self._secret)


def _without_secrets(line: str, secret: str | None) -> str:
    line = _WEBHOOK_TOKEN.sub(r"\1[hidden]", line)
    return line.replace(secret, "[hidden]") if secret else line


def describe_fault(error: BaseException | None) -> str:
    """Return the tracebacks of `error` and of what led to it, the first cause first."""
    return "\n".join(reversed([_describe(one) for one in _chain(error)]))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _describe(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"Traceback (most recent call last):\n{frames}{_kind(error)}{_told(error)}"


def _kind(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _told(error: BaseException) -> str:
    if isinstance(error, _TOLD) or type(error).__module__.partition(".")[0] in _WITH_OWN_WORDS:
        return f": {error}"
    numbers = [(name, getattr(error, name, None)) for name in _NUMBERS]
    found = [f"{name} {number}" for name, number in numbers if isinstance(number, int)]
    return f" ({', '.join(found)})" if found else ""
