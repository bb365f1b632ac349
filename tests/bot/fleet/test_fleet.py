"""A process among others, over a real table: turns, news, what is done once; and one that is alone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bot.fleet import fleet as module
from bot.fleet.choice import ShardChoice
from bot.fleet.fleet import TURN_S, Fleet, Kind, fleet_of
from storage.database import Database, Transaction
from storage.fleet import News
from storage.migrations import MIGRATIONS
from storage.shards import EVERYTHING
from storage.sqlite import SqliteBackend
from tests.virtual_time import VirtualLoop, at_work


async def loop_ms(_transaction: Transaction) -> int:
    """Tell the time of the loop."""
    return int(asyncio.get_running_loop().time() * 1000)


def play(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


class Storage:
    """A database for tests in virtual time, which waits for its thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __aenter__(self) -> Database:
        backend = await at_work(SqliteBackend.open)(self._path, 5.0, MIGRATIONS)
        backend._run = at_work(backend._run)  # type: ignore[method-assign]
        self.database = Database(backend)
        return self.database

    async def __aexit__(self, *_: object) -> None:
        await at_work(self.database.close)()


def test_processes_begin_sessions_one_after_the_other(tmp_path: Path) -> None:
    async def begin() -> None:
        async with Storage(tmp_path / "bot.db") as database:
            begun: dict[str, list[float]] = {"identify:0": [], "identify:1": []}

            async def one(name: str) -> None:
                await Fleet(database=database, clock=loop_ms).turn(name)
                begun[name].append(asyncio.get_running_loop().time())

            await asyncio.gather(*(one(name) for name in begun for _ in range(5)))
            for times in begun.values():
                assert len(times) == 5
                assert all(b - a >= TURN_S - 0.5 for a, b in pairwise(times))
            assert max(map(max, begun.values())) - min(map(min, begun.values())) < 5 * TURN_S

    play(begin())


def test_who_is_late_for_a_turn_takes_another_one(tmp_path: Path) -> None:
    async def begin() -> None:
        async with Storage(tmp_path / "bot.db") as database:
            loop = asyncio.get_running_loop()
            fleet = Fleet(database=database, clock=loop_ms)
            await fleet.turn("x")
            taking = asyncio.create_task(fleet.turn("x"))
            due_s = loop.time() + TURN_S
            await asyncio.sleep(TURN_S - 0.01)
            loop._now_s += 3  # type: ignore[attr-defined]  # the loop is busy with something else
            await taking
            assert loop.time() >= due_s + TURN_S - 0.1

    play(begin())


def test_a_clock_that_is_put_back_holds_up_no_turn(tmp_path: Path) -> None:
    ahead_ms = [3_600_000]

    async def clock(transaction: Transaction) -> int:
        return await loop_ms(transaction) + ahead_ms[0]

    async def begin() -> None:
        async with Storage(tmp_path / "bot.db") as database:
            fleet = Fleet(database=database, clock=clock)
            await fleet.turn("x")
            ahead_ms[0] = 0
            began_s = asyncio.get_running_loop().time()
            await fleet.turn("x")
            assert asyncio.get_running_loop().time() - began_s <= TURN_S
            await fleet.turn("x")
            assert asyncio.get_running_loop().time() - began_s >= TURN_S - 0.1

    play(begin())


def test_nobody_waits_longer_for_a_turn_than_a_connection_lives(tmp_path: Path) -> None:
    async def begin() -> None:
        async with Storage(tmp_path / "bot.db") as database:
            fleet = Fleet(database=database, clock=loop_ms)
            taking = [asyncio.create_task(fleet.turn("x")) for _ in range(30)]
            done, _ = await asyncio.wait(taking)
            assert {type(one.exception()) for one in done} == {type(None), TimeoutError}

    play(begin())


def test_what_one_process_does_all_others_hear_within_two_seconds(tmp_path: Path) -> None:
    async def begin() -> None:
        async with Storage(tmp_path / "bot.db") as database:
            a, b = (Fleet(database=database) for _ in range(2))
            heard: dict[str, list[News]] = {"a": [], "b": []}

            async def hear(name: str, news: News) -> None:
                heard[name].append(news)
                raise RuntimeError("a fault in one ends nothing")

            for name, fleet in (("a", a), ("b", b)):
                await fleet.start()
                fleet.listen(lambda news, name=name: hear(name, news))  # type: ignore[misc]
            await a.tell(Kind.FORGOTTEN, 42)
            a.tell_soon(Kind.CONFIG_CHANGED, 7)
            await asyncio.sleep(2)
            assert heard == {"a": [], "b": [News("forgotten", 42), News("config", 7)]}
            await a.close()
            await b.close()

    play(begin())


async def test_one_process_does_for_all_what_is_done_once(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "bot.db") as database:
        fleets = [Fleet(database=database, clock=loop_ms) for _ in range(3)]
        assert [await fleet.once("commands") for fleet in fleets] == [True, False, False]
        await fleets[0].not_done("commands")
        assert [await fleet.once("commands") for fleet in fleets] == [True, False, False]


async def test_a_host_whose_clock_is_wrong_keeps_nothing_from_being_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = [0]

    async def clock(_transaction: Transaction) -> int:
        return now_ms[0]

    async with await Database.open(tmp_path / "bot.db") as database:
        fleet = Fleet(database=database, clock=clock)
        with monkeypatch.context() as wrong:
            wrong.setattr(module, "utc_now", lambda: datetime(2100, 1, 1, tzinfo=UTC))
            assert await fleet.once("commands")
        now_ms[0] += int(module.ONCE_S * 1000)
        assert await fleet.once("commands")


async def test_a_process_that_is_alone_waits_for_nothing_and_may_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_S", 1e9)
    fleet = Fleet()
    async with asyncio.timeout(1):
        for _ in range(3):
            await fleet.turn("identify:0")
            assert await fleet.once("commands")
            assert await fleet.until_may_act()
        await fleet.tell(Kind.FORGOTTEN, 1)
        await fleet.close()
    assert fleet.may_act()
    assert fleet.share() == 1.0
    assert fleet.shards == EVERYTHING
    assert not fleet.lost.is_set()


def test_a_model_that_was_chosen_holds_for_all_until_the_last_one_has_ended(tmp_path: Path) -> None:
    async def choose() -> None:
        async with Storage(tmp_path / "bot.db") as database:
            halves = [ShardChoice(1, 2, 0), ShardChoice(1, 2, 1)]
            async with fleet_of(database, halves[0]) as first:
                assert await first.chosen_model() is None
                heard: list[News] = []

                async def hear(news: News) -> None:
                    heard.append(news)

                first.listen(hear)
                async with fleet_of(database, halves[1]) as second:
                    await second.choose_model(2**55)
                    await asyncio.sleep(2)
                    assert heard == [News("model", 0)]
                    assert await first.chosen_model() == await second.chosen_model() == 2**55
                async with fleet_of(database, halves[1]) as second:
                    assert await second.chosen_model() == 2**55
            async with fleet_of(database, halves[0]) as first:
                assert await first.chosen_model() is None

    play(choose())
