"""Who asks or acts, where, and what they may do there. Values that conversations and servers share. Pure."""

from __future__ import annotations

from dataclasses import dataclass

Keys = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks, and where.

    place_ids: the channel and, of a thread, the channel it belongs to. reads_back: whether they may read
    what was said there before they came.
    """

    user_id: int
    channel_id: int
    guild_id: int | None = None
    place_ids: frozenset[int] = frozenset()
    role_ids: frozenset[int] = frozenset()
    is_moderator: bool = False
    is_age_restricted: bool = False
    reads_back: bool = True

    @property
    def keys(self) -> Keys:
        """Who takes turns: server, person and channel; a direct message stands for itself, as servers do."""
        user = ("user", self.user_id)
        return (
            user if self.guild_id is None else ("server", self.guild_id),
            user,
            ("channel", self.channel_id),
        )


@dataclass(frozen=True, slots=True)
class Actor:
    """The person behind an event, and what Discord grants them in the place where it happened."""

    user_id: int
    is_direct: bool
    """In a direct message there are no moderators: it belongs to the person in it."""
    can_manage_messages: bool


def may_moderate(actor: Actor) -> bool:
    """Tell whether `actor` may reset the conversation or change its settings."""
    return actor.is_direct or actor.can_manage_messages


def may_steer(actor: Actor, asker_id: int | None) -> bool:
    """Tell whether `actor` may stop or regenerate the answer to a question of `asker_id`."""
    return may_moderate(actor) or (asker_id is not None and actor.user_id == asker_id)
