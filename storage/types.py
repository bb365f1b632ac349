"""The values that cross the storage's boundary, frozen, and how they look in the tables. Free of any I/O.

Rows become messages, times are milliseconds, and text has neither half characters nor null characters.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from storage.backend import Row

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class ConversationKind(StrEnum):
    """Where a conversation takes place."""

    CHANNEL = "channel"
    THREAD = "thread"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Asked:
    """How many questions a conversation had of late, and when the last one came."""

    conversation_id: int
    num_questions: int
    last_at: datetime


class Role(StrEnum):
    """Who wrote a message."""

    USER = "user"
    ASSISTANT = "assistant"


class MessageState(StrEnum):
    """How far a message is. Questions are always COMPLETE; answers leave PENDING exactly once."""

    PENDING = "pending"
    COMPLETE = "complete"
    STOPPED = "stopped"
    """Somebody stopped it; what was there so far counts."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """The program ended before the answer did."""


@dataclass(frozen=True, slots=True)
class ConversationRef:
    """The place on Discord that a conversation belongs to; a thread's own id is its channel id."""

    channel_id: int
    kind: ConversationKind
    guild_id: int | None


@dataclass(frozen=True, slots=True)
class Quote:
    """A message that a question refers to. `discord_id` 0 and `author_id` 0 are unknown."""

    author_name: str
    content: str
    discord_id: int = 0
    author_id: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """A question or an answer.

    created_at: UTC, whole milliseconds. reply_to: of an answer, the id of its question.
    author_id: None and author_name: empty for an answer. view_from: of an answer for which the beginning of
    the conversation was left out, the id of the first message that the model saw.
    """

    id: int
    conversation_id: int
    role: Role
    state: MessageState
    author_id: int | None
    author_name: str
    content: str
    created_at: datetime
    reply_to: int | None
    num_tokens: int | None
    finish_reason: str | None
    quotes: tuple[Quote, ...] = ()
    view_from: int | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and the answer that is to be written."""

    question: Message
    answer: Message


@dataclass(frozen=True, slots=True)
class InterruptedAnswer:
    """An answer that was being written, or whose ending was still to be shown, when the program ended.

    answer: what stands now. Its state is INTERRUPTED, or another one if a regeneration had written nothing
    and gave way to the answer it was to replace: that one is to be shown again.
    part_ids: Discord ids of the messages that show it, in order; empty if none was sent yet.
    question_discord_id: the message that it replies to. note: what the caller stored to be shown below it.
    """

    answer: Message
    channel_id: int
    part_ids: tuple[int, ...]
    question_discord_id: int | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Deleted:
    """A question that was deleted, and the answers that went with it; some may be still running."""

    conversation_id: int
    answer_ids: tuple[int, ...]


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
    """Return the message in a row of messages that has its quotes as JSON: places, names, texts and ids."""
    quotes = tuple(Quote(*quote) for _, *quote in sorted(json.loads(row["quoted"] or "[]")))
    return dataclasses.replace(to_message(row), quotes=quotes)


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
    """Replace what no database may hold: lone surrogates, which UTF-8 cannot carry, and null characters."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
