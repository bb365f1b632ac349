"""An exception with its traceback as text for the log, without what people wrote. Pure.

Messages of exceptions may hold the value that was wrong, which may be somebody's words: only those of kinds
that name no values are told, and of the others where they came from.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

_TOLD = (OSError, TypeError, AttributeError, NameError, ImportError, MemoryError, RecursionError)
_OURS = ("engine", "storage")
"""Their exceptions say what is wrong in words of their own."""
_NUMBERS = ("status", "code")
"""What errors of Discord have."""


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
    if isinstance(error, _TOLD) or type(error).__module__.partition(".")[0] in _OURS:
        return f": {error}"
    numbers = [(name, getattr(error, name, None)) for name in _NUMBERS]
    found = [f"{name} {number}" for name, number in numbers if isinstance(number, int)]
    return f" ({', '.join(found)})" if found else ""
