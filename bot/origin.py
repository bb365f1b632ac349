"""Where a question comes from. A value that conversations, servers and safety share."""

from __future__ import annotations

from dataclasses import dataclass

Keys = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks, and where.

    place_ids: the channel and, of a thread, the channel it belongs to.
    """

    user_id: int
    channel_id: int
    guild_id: int | None = None
    place_ids: frozenset[int] = frozenset()
    role_ids: frozenset[int] = frozenset()
    is_moderator: bool = False
    is_age_restricted: bool = False

    @property
    def keys(self) -> Keys:
        """Who takes turns: server, person and channel; a direct message stands for itself, as servers do."""
        user = ("user", self.user_id)
        return (
            user if self.guild_id is None else ("server", self.guild_id),
            user,
            ("channel", self.channel_id),
        )
