"""How values look in the tables: rows as messages, times as milliseconds, text without half characters."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from storage.database import Row
from storage.types import Message, MessageState, Quote, Role

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def to_message(row: Row) -> Message:
    """Return the message in a row of the table messages."""
    return Message(
        id=row["id"],
        conversation_id=row["conversation_id"],
        role=Role(row["role"]),
        state=MessageState(row["state"]),
        author_id=row["author_id"],
        author_name=row["author_name"],
        content=row["content"],
        created_at=from_milliseconds(row["created_at"]),
        reply_to=row["reply_to"],
        num_tokens=row["num_tokens"],
        finish_reason=row["finish_reason"],
        view_from=row["view_from"],
    )


def to_quoting_message(row: Row) -> Message:
    """Return the message in a row of messages joined with its quote, if any."""
    message = to_message(row)
    if row["quoted"] is None:
        return message
    return dataclasses.replace(message, quote=Quote(row["quoted_name"], row["quoted"]))


def to_milliseconds(at: datetime) -> int:
    """Return whole milliseconds since 1970 in UTC; raises `ValueError` for a time without a zone."""
    if at.tzinfo is None:
        raise ValueError("A time without a time zone cannot be stored.")
    return (at - _EPOCH) // _MILLISECOND


def from_milliseconds(milliseconds: int) -> datetime:
    """Return the time in UTC that is so many milliseconds after 1970."""
    return _EPOCH + milliseconds * _MILLISECOND


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def storable(text: str) -> str:
    """Replace lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
