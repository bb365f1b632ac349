"""The pace of a channel: pure, with times as values."""

from __future__ import annotations

import gc

from bot.delivery.pace import MAX_EDITS, WINDOW_S, ChannelPace, Paces


def test_as_many_edits_as_allowed_go_at_once_and_the_next_one_waits_for_the_first_to_be_old() -> None:
    pace = ChannelPace()
    for number in range(MAX_EDITS):
        assert pace.free_at_s <= 100.0
        pace.edits_at(100.0 + number)
    assert pace.free_at_s == 100.0 + WINDOW_S
    pace.edits_at(pace.free_at_s)
    assert pace.free_at_s == 101.0 + WINDOW_S


def test_what_matters_little_has_room_only_while_half_of_the_edits_are_left() -> None:
    pace = ChannelPace()
    assert pace.has_room(100.0)
    pace.edits_at(100.0)
    assert pace.has_room(100.0)
    pace.edits_at(101.0)
    assert not pace.has_room(101.0)
    assert pace.has_room(100.0 + WINDOW_S)


def test_a_channel_has_one_pace_while_somebody_holds_it_and_nothing_is_kept_after() -> None:
    paces = Paces()
    pace = paces.of(1)
    assert paces.of(1) is pace
    assert paces.of(2) is not pace
    del pace
    gc.collect()
    assert len(paces) == 0
