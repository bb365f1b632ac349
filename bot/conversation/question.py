"""A question: what somebody asked, where, and what goes with it. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from bot.servers.origin import Origin
from storage.conversations import ConversationRef, Quote


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asked, and where."""

    conversation: ConversationRef
    discord_id: int
    author_id: int
    author_name: str
    content: str
    created_at: datetime
    quote: Quote | None = None
    """The message that the question replies to or is about."""
    starter_id: int | None = None
    """The Discord message that the thread was started from, for a question in a thread."""
    settings_of: ConversationRef | None = None
    """The conversation whose settings hold, if not this one's."""
    overrides: Mapping[str, object] = field(default_factory=dict)
    """Parameters for this answer alone."""
    notes: tuple[str, ...] = ()
    """Phrases that are said below the answer."""
    origin: Origin | None = None
    """What a server's rules look at; None is a person without roles, directly in this conversation."""

    @property
    def asked_from(self) -> Origin:
        """Who asks, and where."""
        ref = self.conversation
        return self.origin or Origin(self.author_id, ref.channel_id, ref.guild_id)
