"""Who asks, and where, as far as a server's rules look at it. Values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a question comes from.

    place_ids: the channel and, of a thread, the channel it belongs to.
    """

    user_id: int
    channel_id: int
    guild_id: int | None = None
    place_ids: frozenset[int] = frozenset()
    role_ids: frozenset[int] = frozenset()
    is_moderator: bool = False
    is_age_restricted: bool = False
