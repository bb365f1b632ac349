"""The id of the question that is being worked on: opaque, the same in the logs of all parts.

It says nothing of who asked what. It follows the work from task to task; whoever turns to another question
names that one.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

HEADER = "x-request-id"
"""The header of HTTP that carries it between programs."""

_current: ContextVar[str] = ContextVar("trace", default="")


def new_trace() -> str:
    """Return an id that nobody had before."""
    return secrets.token_hex(8)


def current_trace() -> str:
    """Return the id of what is being worked on here, "" for nothing in particular."""
    return _current.get()


@contextmanager
def traced(trace: str) -> Iterator[str]:
    """Work for the question with this id until the end of the `with`, whose value it is."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        with suppress(ValueError):  # somebody else closes what was left here, and keeps an id of their own
            _current.reset(token)


def note_trace(record: logging.LogRecord) -> bool:
    """Give a record of the log its `trace`, as a filter of a handler; let all of them through."""
    record.trace = current_trace()
    return True
