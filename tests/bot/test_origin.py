"""Who may do what."""

from __future__ import annotations

import pytest

from bot.origin import Actor, may_moderate, may_steer

MEMBER = Actor(user_id=1, is_direct=False, can_manage_messages=False)
MODERATOR = Actor(user_id=2, is_direct=False, can_manage_messages=True)
IN_DIRECT = Actor(user_id=1, is_direct=True, can_manage_messages=False)


@pytest.mark.parametrize(("actor", "allowed"), [(MEMBER, False), (MODERATOR, True), (IN_DIRECT, True)])
def test_only_moderators_moderate_except_in_ones_own_messages(actor: Actor, allowed: bool) -> None:
    assert may_moderate(actor) is allowed


@pytest.mark.parametrize(
    ("actor", "asker_id", "allowed"),
    [
        (MEMBER, 1, True),
        (MEMBER, 2, False),
        (MEMBER, None, False),
        (MODERATOR, 1, True),
        (MODERATOR, None, True),
    ],
)
def test_an_answer_is_steered_by_its_asker_or_a_moderator(
    actor: Actor, asker_id: int | None, allowed: bool
) -> None:
    assert may_steer(actor, asker_id) is allowed
