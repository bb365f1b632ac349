"""The values that cross the storage's boundary. Frozen, free of any I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ConversationKind(StrEnum):
    """Where a conversation takes place."""

    CHANNEL = "channel"
    THREAD = "thread"
    DIRECT = "direct"


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
    """The message that a question replies to or is about. `discord_id` 0 and `author_id` 0 are unknown."""

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
    quote: Quote | None = None
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
