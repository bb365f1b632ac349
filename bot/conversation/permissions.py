"""Who may do what with a conversation. Pure: values in, yes or no out.

Knows nothing of Discord's objects: the caller says who acts, where, and what Discord lets them do there.
"""

from __future__ import annotations

from dataclasses import dataclass


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
