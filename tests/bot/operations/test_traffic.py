"""What holds for all requests: limits are obeyed by everybody, and the gateway is asked gently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import discord
import pytest
from discord.http import Route

from bot.delivery.budget import PER_SECOND, USED, WINDOW_S, RequestBudget
from bot.fleet.fleet import Fleet
from bot.on_discord.traffic import LONGEST_PAUSE_S, Attempts, Gateway, ShortBackoff, Traffic
from tests.bot.delivery.delivery_stage import in_virtual_time, now_s
from tests.bot.operations.discord_api import limited, refused
from tests.bot.operations.local_discord import CHANNEL_ID, Fault, LocalDiscord, banned, local_discord

DAY_S = 86400.0


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalDiscord]:
    async with local_discord() as place:
        monkeypatch.setattr(Route, "BASE", place.url)
        yield place


async def test_whoever_gives_up_during_a_global_limit_leaves_nobody_waiting(place: LocalDiscord) -> None:
    """discord.py alone would have every later request wait for ever."""
    traffic = Traffic(lambda: None)
    async with discord.Client(intents=discord.Intents.default(), http_trace=traffic.trace) as client:
        await client.login("token")
        channel = client.get_partial_messageable(CHANNEL_ID)
        place.faults.append(Fault("POST", "/messages$", reply=limited(0.3, is_global=True)))
        sending = asyncio.create_task(channel.send("one"))
        await asyncio.sleep(0.1)
        sending.cancel()
        await asyncio.wait({sending})
        async with asyncio.timeout(5):
            await channel.send("two")
    assert place.texts == ["two"]


@pytest.mark.parametrize("reply", [banned(60), limited(60, is_global=True)])
async def test_what_holds_for_all_is_known_to_all_and_costs_no_further_request(
    place: LocalDiscord, reply: Any
) -> None:
    traffic = Traffic(lambda: None)
    async with discord.Client(intents=discord.Intents.default(), http_trace=traffic.trace) as client:
        await client.login("token")
        place.faults.append(Fault("POST", "/messages$", reply=reply))
        num_before = place.num_requests
        for _ in range(3):
            with pytest.raises(discord.RateLimited) as caught:
                await client.get_partial_messageable(CHANNEL_ID).send("one")
            assert 50 < caught.value.retry_after <= 60
    assert place.num_requests == num_before + 1


async def test_nothing_is_asked_of_discord_while_another_process_may_act_for_our_servers(
    place: LocalDiscord,
) -> None:
    may_act = [True]
    traffic = Traffic(lambda: None, may_act=lambda: may_act[0])
    async with discord.Client(intents=discord.Intents.default(), http_trace=traffic.trace) as client:
        await client.login("token")
        may_act[0], num_before = False, place.num_requests
        with pytest.raises(discord.RateLimited):
            await client.get_partial_messageable(CHANNEL_ID).send("one")
        assert place.num_requests == num_before
        may_act[0] = True
        await client.get_partial_messageable(CHANNEL_ID).send("two")
    assert place.texts == ["two"]


class _Slow(RequestBudget):
    pause_s = 0.0

    def wait_s(self, at_s: float) -> float:
        return self.pause_s


async def test_what_waited_while_the_process_stood_still_is_not_sent_any_more(place: LocalDiscord) -> None:
    may_act, budget = [True], _Slow()
    traffic = Traffic(lambda: None, budget, may_act=lambda: may_act[0])
    async with discord.Client(intents=discord.Intents.default(), http_trace=traffic.trace) as client:
        await client.login("token")
        budget.pause_s = 0.2
        sending = asyncio.create_task(client.get_partial_messageable(CHANNEL_ID).send("one"))
        await asyncio.sleep(0.1)
        may_act[0] = False
        with pytest.raises(discord.RateLimited):
            await sending
    assert place.texts == []


async def test_all_requests_of_a_process_stay_within_its_share(place: LocalDiscord) -> None:
    budget = RequestBudget(lambda: 5 / (PER_SECOND * USED))
    traffic = Traffic(lambda: None, budget)
    async with discord.Client(intents=discord.Intents.default(), http_trace=traffic.trace) as client:
        await client.login("token")
        await asyncio.sleep(WINDOW_S)
        began_s = now_s()
        channel = client.get_partial_messageable(CHANNEL_ID)
        await asyncio.gather(*(channel.typing() for _ in range(11)))
        assert now_s() - began_s >= 2 * WINDOW_S * 0.99


async def test_it_is_told_when_discord_answers_again(place: LocalDiscord) -> None:
    returns: list[None] = []
    traffic = Traffic(lambda: returns.append(None))
    async with discord.Client(intents=discord.Intents.default(), http_trace=traffic.trace) as client:
        await client.login("token")
        channel = client.get_partial_messageable(CHANNEL_ID)
        await channel.send("one")
        place.faults.append(Fault("POST", "/messages$", reply=refused(503)))
        with pytest.raises(discord.DiscordServerError):
            await channel.send("two")
        assert not returns
        for text in ("three", "four"):
            await channel.send(text)
    assert len(returns) == 1


def test_the_first_attempts_wait_for_nothing_and_the_next_ones_ever_longer() -> None:
    attempts = Attempts(num_free=2, first_s=4.0, longest_s=10.0, window_s=60.0)
    waits = []
    for _ in range(6):
        waits.append(attempts.wait_s(100.0))
        attempts.note(100.0)
    assert waits == [0, 0, 4, 8, 10, 10]
    assert attempts.wait_s(107.0) == 3.0
    assert attempts.wait_s(161.0) == 0.0


@pytest.mark.parametrize("begins_sessions", [False, True])
def test_a_gateway_that_ends_every_connection_is_asked_gently(*, begins_sessions: bool) -> None:
    """discord.py tries again at once; Discord takes a thousand new sessions a day, and then the token."""

    async def a_day() -> tuple[int, int]:
        async def connect(_url: str, *, compress: int = 0) -> None:
            assert not compress

        client = SimpleNamespace(http=SimpleNamespace(ws_connect=connect))
        gateway = Gateway(cast("discord.Client", client), Fleet())
        num_connects = num_sessions = 0
        while now_s() < 1000.0 + DAY_S:
            try:
                await gateway.connect("ws://discord")
            except TimeoutError:
                await asyncio.sleep(1.0)
                continue
            num_connects += 1
            if begins_sessions:
                await gateway.before_session(None, is_first=num_sessions == 0)
                num_sessions += 1
        return num_connects, num_sessions

    num_connects, num_sessions = in_virtual_time(a_day())
    assert num_connects < DAY_S / 5
    assert num_sessions < 1000


def test_no_pause_between_connections_is_long_and_no_two_are_the_same() -> None:
    backoff = ShortBackoff()
    pauses = [backoff.delay() for _ in range(200)]
    assert max(pauses) <= LONGEST_PAUSE_S
    assert min(pauses[20:]) > 0
    assert len(set(pauses)) == len(pauses)
