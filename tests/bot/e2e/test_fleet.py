"""One process among several that are one bot: what it hears, tells, misses, and when it may not act."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import discord
import pytest

from bot.fleet.fleet import Fleet, Kind
from bot.on_discord.asking import missed as missed_module
from bot.on_discord.asking.missed import Missed
from bot.on_discord.client import LlamacordClient, ShardedClient, client_for
from bot.on_discord.commands import sync_commands
from storage.fleet import News
from storage.settings import ServerSettingsStore
from storage.shards import EVERYTHING, Shards
from tests.bot.e2e.test_privacy import forget
from tests.bot.e2e.world import World
from tests.fakes import Script


async def test_who_is_forgotten_in_another_process_is_forgotten_here(world: World) -> None:
    world.engine.respond = lambda _: Script(("word",), delay_s=30)
    for person in (world.anna, world.bob):
        channel = world.general if person is world.anna else world.random
        await person.send(channel, f"{world.me} hello")
    assert world.client.chat.num_running == 2
    num_drops = world.engine.num_drops
    await world.client._hear(News(Kind.FORGOTTEN, world.anna.id))
    await world.run()
    assert world.client.chat.num_running == 1
    assert world.engine.num_drops > num_drops


async def test_who_opts_out_in_another_process_is_answered_no_more(world: World) -> None:
    world.engine.respond = lambda _: Script(("word",), delay_s=30)
    await world.anna.send(world.general, f"{world.me} hello")
    await world.client._hear(News(Kind.OPTED_OUT, world.anna.id))
    await world.run()
    assert world.client.chat.num_running == 0


async def test_what_a_server_sets_in_another_process_holds_here(world: World) -> None:
    servers, guild_id = world.moderation.servers, world.guild.id
    before = await servers.config(guild_id)
    await ServerSettingsStore(world.database).set(
        guild_id, "uses_embeds", not before.uses_embeds, by_user_id=1, at=datetime.now(UTC)
    )
    assert await servers.config(guild_id) == before
    await world.client._hear(News(Kind.CONFIG_CHANGED, guild_id))
    assert (await servers.config(guild_id)).uses_embeds is not before.uses_embeds


async def test_other_processes_are_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Kind, int]] = []

    async def tell(_: Fleet, kind: Kind, about: int) -> None:
        told.append((kind, about))

    monkeypatch.setattr(Fleet, "tell", tell)
    monkeypatch.setattr(Fleet, "tell_soon", lambda _, kind, about: told.append((kind, about)))
    await world.set_up(world.guild.id, {"uses_embeds": True})
    assert told == [(Kind.CONFIG_CHANGED, world.guild.id)]
    told.clear()
    await forget(world.anna, world.general)
    assert told == [(Kind.FORGOTTEN, world.anna.id)] * 2
    told.clear()
    await world.anna.slash(world.general, "opt-out")
    assert told == [(Kind.OPTED_OUT, world.anna.id)]


async def test_a_message_waits_until_it_is_certain_that_nobody_else_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    may, decided = [False], asyncio.Event()

    async def until_may_act(_: Fleet) -> bool:
        await decided.wait()
        return may[0]

    monkeypatch.setattr(Fleet, "may_act", lambda _: may[0])
    monkeypatch.setattr(Fleet, "until_may_act", until_may_act)
    world.answers("yes")
    sending = asyncio.create_task(world.anna.send(world.general, f"{world.me} hello"))
    await asyncio.sleep(0.05)
    assert world.engine.dialogs == []
    may[0] = True
    decided.set()
    await sending
    await world.run()
    assert len(world.engine.dialogs) == 1


async def test_commands_and_buttons_are_left_to_whoever_may_act(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.answers("word ", loops=True)
    await world.anna.send(world.general, f"{world.me} hello")
    await world.run(1)
    monkeypatch.setattr(world.client.tree, "_may_act", lambda: False)
    monkeypatch.setattr(Fleet, "may_act", lambda _: False)
    assert not (await world.anna.slash(world.general, "help")).acknowledged
    assert not (await world.anna.click(world.reply(world.general), label="Stop")).acknowledged
    assert world.engine.num_running == 1


async def test_only_the_process_whose_turn_it_is_registers_commands(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[str] = []

    async def once(_: Fleet, job: str) -> bool:
        jobs.append(job)
        return False

    monkeypatch.setattr(Fleet, "once", once)
    monkeypatch.setattr(world.client.tree, "sync", None)
    assert not await sync_commands(world.client.tree, world.client.fleet)
    assert not await sync_commands(world.client.tree, world.client.fleet)
    assert len(set(jobs)) == 1


async def test_what_was_asked_while_nobody_attended_is_taken_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.answers("yes")
    await world.anna.send(world.general, f"{world.me} answered already")
    await world.run(3)

    async def ignore(*_: Any) -> None: ...

    monkeypatch.setattr(world.client._intake, "take", ignore)
    for person, text in (
        (world.bob, f"{world.me} missed"), (world.bob, "not for us"), (world.anna, f"{world.me} too")
    ):  # fmt: skip
        await person.send(world.general, text)
    taken: list[discord.Message] = []

    async def take(message: discord.Message, _bot: object) -> None:
        taken.append(message)

    now_ms = int(world.env.now().timestamp() * 1000)
    monkeypatch.setattr(missed_module, "datetime", _Clock(world))
    missed = Missed(world.client, EVERYTHING, {0: now_ms - 1000}, take)
    was_done = missed.is_done
    await missed.look()
    assert (was_done, missed.is_done) == (False, True)
    assert [message.content for message in taken] == [f"{world.me} missed", f"{world.me} too"]
    assert isinstance(taken[0].author, discord.Member)
    await missed.look()
    assert len(taken) == 2
    later = Missed(world.client, EVERYTHING, {0: now_ms + 60_000}, take)
    await later.look()
    assert len(taken) == 2


class _Clock:
    """The time of a simulated Discord."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self, _zone: object) -> datetime:
        return self._world.env.now()

    def fromtimestamp(self, seconds: float, zone: Any) -> datetime:
        return datetime.fromtimestamp(seconds, zone)


def test_where_nobody_knows_what_was_missed_nothing_was() -> None:
    async def take(*_: object) -> None: ...

    for attended_at in ({}, {0: 0, 1: 0}):
        assert Missed(None, EVERYTHING, attended_at, take).is_done  # type: ignore[arg-type]


def test_one_shard_needs_nothing_of_what_several_need() -> None:
    assert client_for(Fleet()) is LlamacordClient
    assert client_for(Fleet(Shards(0, 3, 4))) is ShardedClient
    assert client_for(Fleet(Shards(1, 1, 4))) is ShardedClient


async def test_health_names_the_shards(world: World) -> None:
    assert str(world.client.vitals().shards) == "0/1"
    world.client.fleet.shards = Shards(4, 7, 16)
    assert str(world.client.vitals().shards) == "4-7/16"
