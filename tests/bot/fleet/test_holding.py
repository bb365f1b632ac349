"""Processes that take, keep, lose and give back shards, in virtual time: no two ever act for one shard."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.fleet.choice import ShardChoice
from bot.fleet.holding import BEAT_S, FENCE_S, LEASE_S, Holding, ShardsTakenError, Watch, share_of
from storage.errors import DatabaseUnavailableError
from storage.leases import Lease
from storage.postgres.connection import IDLE_IN_TRANSACTION_MS
from storage.shards import Shards
from tests.virtual_time import run

ONE = ShardChoice()


@dataclass
class Table:
    """The table as `Leases` has it, in memory; `cut_off` are those whose statements fail."""

    rows: dict[int, Lease] = field(default_factory=dict)
    attended: dict[int, int] = field(default_factory=dict)
    cut_off: set[str] = field(default_factory=set)


class View:
    """What one process sees of the table. A stand-in for `Leases`, which has its own test on a database."""

    def __init__(self, table: Table, me: str) -> None:
        self._table = table
        self._me = me

    def _check(self) -> None:
        if self._me in self._table.cut_off:
            raise DatabaseUnavailableError("away")

    async def all(self) -> list[Lease]:
        self._check()
        return [self._table.rows[one] for one in sorted(self._table.rows)]

    async def take(self, shards: Shards, holder: str) -> Mapping[int, int] | None:
        self._check()
        for one in self._table.rows.values():
            if one.num_shards != shards.count or one.shard_id in shards.ids:
                return None
        self._table.rows |= {one: Lease(one, shards.count, holder, 0) for one in shards.ids}
        return {one: self._table.attended.get(one, 0) for one in shards.ids}

    async def beat(self, holder: str, *, attended_at: int | None = None, wants: int = 0) -> list[int]:
        self._check()
        mine = [one for one in self._table.rows.values() if one.holder == holder]
        for one in mine:
            self._table.rows[one.shard_id] = Lease(one.shard_id, one.num_shards, holder, one.beat + 1, wants)
            if attended_at is not None:
                self._table.attended[one.shard_id] = attended_at
        return sorted(one.shard_id for one in mine)

    async def give_back(self, holder: str, *, attended_at: int | None = None) -> None:
        self._check()
        self._table.rows = {n: one for n, one in self._table.rows.items() if one.holder != holder}

    async def end(self, dead: Sequence[Lease]) -> None:
        self._check()
        gone = {(one.holder, one.beat) for one in dead}
        self._table.rows = {
            n: one for n, one in self._table.rows.items() if (one.holder, one.beat) not in gone
        }


def process(table: Table, me: str) -> Holding:
    return Holding(View(table, me), me, now_ms=lambda: int(asyncio.get_running_loop().time() * 1000))  # type: ignore[arg-type]


def kill(holding: Holding) -> None:
    """Let a process die: it gives no sign of life any more."""
    holding._tasks.cancel()


def test_each_gets_its_part_and_who_comes_too_late_stands_by() -> None:
    async def play() -> None:
        table, some = Table(), ShardChoice(4, 16, None)
        holdings = [process(table, f"p{n}") for n in range(5)]
        claims = [asyncio.create_task(one.claim(some)) for one in holdings]
        await asyncio.sleep(5)
        got = {str(claim.result()) for claim in claims if claim.done()}
        assert got == {"0-3/16", "4-7/16", "8-11/16", "12-15/16"}
        (waiting,) = (claim for claim in claims if not claim.done())
        await holdings[1].close()
        async with asyncio.timeout(3):
            assert str(await waiting) == str(holdings[1].shards)
        for one in holdings:
            await one.close()
        assert table.rows == {}

    run(play())


def test_who_stands_by_outlasts_a_database_that_is_away() -> None:
    async def play() -> None:
        table = Table()
        first, second = process(table, "first"), process(table, "second")
        table.cut_off = {"second"}
        with pytest.raises(DatabaseUnavailableError):
            await second.claim(ShardChoice(1, 1, None))
        table.cut_off = set()
        await first.claim(ShardChoice(1, 1, None))
        claim = asyncio.create_task(second.claim(ShardChoice(1, 1, None)))
        await asyncio.sleep(5)
        table.cut_off = {"second"}
        await asyncio.sleep(60)
        table.cut_off = set()
        await first.close()
        async with asyncio.timeout(3):
            assert str(await claim) == "0/1"

    run(play())


def test_a_transaction_of_a_process_that_hangs_is_over_before_others_take_its_shards() -> None:
    assert IDLE_IN_TRANSACTION_MS / 1000 < LEASE_S


def test_the_second_on_the_same_shards_is_told_so_within_seconds() -> None:
    async def play() -> None:
        table = Table()
        first = process(table, "first")
        await first.claim(ShardChoice(2, 4, 0))
        for choice in (ShardChoice(2, 4, 0), ShardChoice(1, 4, 1)):
            with pytest.raises(ShardsTakenError, match="Another process has shard"):
                async with asyncio.timeout(2 * BEAT_S):
                    await process(table, "second").claim(choice)
        with pytest.raises(ShardsTakenError, match=r"use 4 shards in all, but SHARDS says 8"):
            await process(table, "third").claim(ShardChoice(2, 8, None))
        await process(table, "fourth").claim(ShardChoice(2, 4, 2))
        assert first.may_act

    run(play())


def test_the_only_process_of_a_database_says_so_without_a_word_of_shards() -> None:
    async def play() -> None:
        table = Table()
        await process(table, "first").claim(ONE)
        with pytest.raises(ShardsTakenError, match="Another Llamacord is running with this database"):
            await process(table, "second").claim(ONE)

    run(play())


def test_the_shards_of_the_dead_are_taken_over_and_no_sooner_than_they_stopped_to_act() -> None:
    async def play() -> None:
        table, now_s = Table(), asyncio.get_running_loop().time
        first, second = process(table, "first"), process(table, "second")
        first.attending = lambda: True
        await first.claim(ONE)
        await asyncio.sleep(3 * BEAT_S)
        died_at_s = now_s()
        kill(first)
        claim = asyncio.create_task(second.claim(ONE))
        while not claim.done():
            assert not second.may_act
            was_acting = first.may_act
            await asyncio.sleep(0.25)
        assert not was_acting
        assert now_s() - died_at_s < LEASE_S + 3
        assert second.may_act
        assert second.attended_at[0] >= (died_at_s - 2 * BEAT_S) * 1000

    run(play())


def test_who_cannot_give_a_sign_of_life_pauses_and_goes_on_once_it_can() -> None:
    async def play() -> None:
        table = Table()
        first = process(table, "first")
        await first.claim(ONE)
        table.cut_off.add("first")
        await asyncio.sleep(FENCE_S + 1)
        assert not first.may_act
        waiting = asyncio.create_task(first.until_may_act())
        await asyncio.sleep(20)  # nobody else is there to take over
        assert not waiting.done()
        table.cut_off.clear()
        async with asyncio.timeout(3):
            assert await waiting
        assert not first.lost.is_set()

    run(play())


def test_who_comes_back_too_late_knows_that_others_act_now() -> None:
    async def play() -> None:
        table = Table()
        first, second = process(table, "first"), process(table, "second")
        await first.claim(ONE)
        table.cut_off.add("first")
        await second.claim(ONE)
        waiting = asyncio.create_task(first.until_may_act())
        table.cut_off.clear()
        async with asyncio.timeout(3):
            await first.lost.wait()
            assert not await waiting
        await first.close()
        assert [one.holder for one in table.rows.values()] == ["second"]
        assert second.may_act

    run(play())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("start", "kill", "close", "cut", "join", "wait")),
            st.integers(0, 2),
            st.floats(0.1, 14.0),
        ),
        min_size=4,
        max_size=25,
    )
)
def test_whatever_happens_to_three_processes_no_shard_is_ever_two_processes(
    acts: list[tuple[str, int, float]],
) -> None:
    async def play() -> None:
        table, choice = Table(), ShardChoice(1, 2, None)
        alive: dict[int, tuple[Holding, asyncio.Task[Shards]]] = {}
        everybody: list[Holding] = []

        async def watch() -> None:
            while True:
                acting = [one.shards for one in everybody if one.shards is not None and one.may_act]
                ids = [shard_id for shards in acting for shard_id in shards.ids]
                assert len(ids) == len(set(ids)), acting
                await asyncio.sleep(0.2)

        watching = asyncio.create_task(watch())
        for number, (act, who, then_s) in enumerate(acts):
            name, known = f"p{who}", alive.get(who)
            if act == "start" and known is None:
                holding = process(table, f"{name}")
                holding._me = f"{name}.{number}"
                everybody.append(holding)
                alive[who] = holding, asyncio.create_task(holding.claim(choice))
            elif act in ("kill", "close") and known is not None:
                known[1].cancel()
                await asyncio.wait({known[1]})
                await (known[0].close() if act == "close" else asyncio.sleep(0))
                kill(known[0])
                del alive[who]
            elif act == "cut":
                table.cut_off.add(name)
            elif act == "join":
                table.cut_off.discard(name)
            await asyncio.sleep(then_s)
            assert not watching.done(), watching.exception()
        table.cut_off.clear()
        await asyncio.sleep(LEASE_S + 5)  # then as many shards are attended to as there are processes for
        well = [h for h, _ in alive.values() if h.shards is not None and h.may_act]
        failed = [t for _, t in alive.values() if t.done() and not t.cancelled() and t.exception()]
        num_lost = sum(h.lost.is_set() for h, _ in alive.values())
        assert len(well) == min(2, len(alive) - num_lost - len(failed))
        watching.cancel()
        for holding, claim in alive.values():
            claim.cancel()
            await asyncio.wait({claim})
            await holding.close()

    run(play())


def test_only_a_change_that_was_seen_is_a_sign_of_life() -> None:
    watch, still = Watch(), [Lease(0, 1, "a", 5)]
    assert watch.look(still, 0.0) == []
    assert not watch.is_alive("a")
    assert watch.look(still, LEASE_S - 0.1) == []
    assert watch.look([Lease(0, 1, "a", 6)], LEASE_S - 0.1) == []
    assert watch.is_alive("a")
    assert watch.look([Lease(0, 1, "a", 6)], 2 * LEASE_S) == [Lease(0, 1, "a", 6)]
    assert not watch.is_alive("a")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), min_size=1, max_size=16))
def test_the_parts_of_all_are_one(given_to: list[tuple[str, int]]) -> None:
    wants = dict(given_to)
    leases = [Lease(n, 16, holder, 0, wants[holder]) for n, (holder, _) in enumerate(given_to)]
    parts = {holder: share_of(holder, leases) for holder in wants}
    assert sum(parts.values()) == pytest.approx(1.0)
    assert all(0 < part <= 1 for part in parts.values())
    assert share_of("a", []) == 1.0


def test_whoever_has_more_to_do_may_do_more() -> None:
    leases = [Lease(0, 2, "busy", 0, 30), Lease(1, 2, "idle", 0, 0)]
    assert share_of("busy", leases) == 0.75
    assert share_of("idle", leases) == 0.25
