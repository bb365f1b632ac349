"""How the bot is: the worst that applies, and what is shown of it."""

from __future__ import annotations

import discord
import pytest

from bot.on_discord.connection import presence_of
from bot.operations.health import State, Vitals
from engine.types import Health


@pytest.mark.parametrize(
    ("engine", "is_connected", "num_waiting", "state", "is_well"),
    [
        (Health.READY, True, 0, State.READY, True),
        (Health.READY, True, 2, State.BUSY, True),
        (Health.READY, False, 2, State.CONNECTING, False),
        (Health.RECOVERING, True, 2, State.RECOVERING, True),
        (Health.UNHEALTHY, True, 2, State.FAILED, False),
        (Health.CLOSED, False, 0, State.FAILED, False),
    ],
)
def test_the_worst_counts(
    engine: Health, is_connected: bool, num_waiting: int, state: State, is_well: bool
) -> None:
    vitals = Vitals(engine, is_connected, 1, num_waiting)
    assert (vitals.state, vitals.is_well) == (state, is_well)


def test_every_state_has_a_colour_and_words_of_a_status() -> None:
    shown = {
        state: presence_of(Vitals(engine, connected, 0, waiting))
        for state, engine, connected, waiting in [
            (State.READY, Health.READY, True, 0),
            (State.BUSY, Health.READY, True, 3),
            (State.RECOVERING, Health.RECOVERING, True, 0),
            (State.CONNECTING, Health.READY, False, 0),
            (State.FAILED, Health.UNHEALTHY, True, 0),
        ]
    }
    assert set(shown) == set(State)
    assert shown[State.READY] == (discord.Status.online, "Ready")
    assert shown[State.BUSY] == (discord.Status.idle, "Busy: 3 waiting")
    assert all(len(words) <= 128 for _, words in shown.values())
