"""What operators see of the whole bot (ask 20, errors nobody sees), with nothing of what people write."""

from __future__ import annotations

import discord
import pytest

from bot.operations.health import watch
from engine.types import Health
from tests.bot.e2e.test_privacy import CANARY, conversations_of_all_kinds
from tests.bot.e2e.world import World
from tests.bot.operations.test_metrics import figures


async def test_figures_follow_what_happens(world: World) -> None:
    watch(world.client)
    world.answers("one ", "two")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.bob.send(world.general, f"{world.me} hi")
    await world.bob.send(world.general, f"{world.me}")
    await world.run(1)
    found = figures(world.metrics.exposition())
    assert found["llamacord_answers_running"] == found["llamacord_questions_waiting"] == 1
    assert found["llamacord_kv_tokens"] == world.engine.load.num_kv_tokens > 0
    assert found["llamacord_is_busy"] == 1
    assert found["llamacord_refusals_total/EmptyQuestion"] == 1
    await world.run(6)
    found = figures(world.metrics.exposition())
    assert found["llamacord_answers_total/complete"] == 2
    assert found["llamacord_tokens_total/answer"] == 4
    assert found["llamacord_is_ready"] == 1


async def test_no_figure_holds_what_people_write_nor_who_they_are(world: World) -> None:
    """Ask 23: neither content nor ids leave the bot with its figures."""
    watch(world.client)
    await conversations_of_all_kinds(world)
    exposition = world.metrics.exposition().decode()
    assert "llamacord_answers_total" in exposition
    assert CANARY not in exposition
    for somebody in (world.anna.id, world.mod.id, world.guild.id, world.general.id):
        assert str(somebody) not in exposition


async def test_the_presence_shows_how_the_bot_is_and_changes_only_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, str | None]] = []

    async def change_presence(*, status: discord.Status, activity: discord.CustomActivity) -> None:
        shown.append((str(status), activity.name))

    monkeypatch.setattr(world.client, "change_presence", change_presence)
    for health in (Health.RECOVERING, Health.RECOVERING, Health.UNHEALTHY, Health.READY):
        world.engine.health = health
        await world.env.advance_time(20)
    assert shown == [("dnd", "Recovering"), ("dnd", "Failed"), ("online", "Ready")]


async def test_a_presence_that_cannot_be_changed_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_tries = 0

    async def change_presence(**_: object) -> None:
        nonlocal num_tries
        num_tries += 1
        raise OSError

    monkeypatch.setattr(world.client, "change_presence", change_presence)
    world.engine.health = Health.RECOVERING
    await world.env.advance_time(40)
    assert num_tries >= 2
