"""Shards that processes have, what they tell each other, and whose turn it is, in a real table."""

from __future__ import annotations

from datetime import timedelta

from storage.database import Database
from storage.fleet import KEPT, News, NewsTable, claim_once, next_turn, unclaim
from storage.leases import Lease, Leases
from storage.shards import Shards
from tests.storage.conftest import NOW

FIRST, SECOND = Shards(0, 1, 4), Shards(2, 3, 4)


async def test_shards_are_taken_kept_and_given_back(database: Database) -> None:
    leases = Leases(database)
    assert await leases.take(FIRST, "a") == {0: 0, 1: 0}
    for shards in (FIRST, Shards(1, 2, 4), Shards(0, 3, 4), Shards(0, 0, 2)):
        assert await leases.take(shards, "b") is None
    assert await leases.take(SECOND, "b") == {2: 0, 3: 0}
    assert await leases.beat("a", attended_at=5, wants=7) == [0, 1]
    assert await leases.beat("c") == []
    assert await leases.all() == [
        Lease(0, 4, "a", 1, 7), Lease(1, 4, "a", 1, 7), Lease(2, 4, "b", 0, 0), Lease(3, 4, "b", 0, 0)
    ]  # fmt: skip
    await leases.give_back("a")
    await leases.give_back("b", attended_at=9)
    assert await leases.all() == []
    assert await leases.take(Shards(1, 2, 4), "d") == {1: 5, 2: 9}


async def test_only_those_who_gave_no_sign_of_life_since_lose_what_they_have(database: Database) -> None:
    leases = Leases(database)
    await leases.take(FIRST, "a")
    await leases.take(SECOND, "b")
    seen = await leases.all()
    await leases.beat("b")
    await leases.end(seen)
    assert {one.holder for one in await leases.all()} == {"b"}
    assert await leases.beat("a") == []


async def test_who_deals_out_another_number_of_shards_begins_anew(database: Database) -> None:
    leases = Leases(database)
    await leases.take(FIRST, "a")
    await leases.give_back("a", attended_at=5)
    assert await leases.take(Shards(0, 1, 2), "b") == {0: 0, 1: 0}
    assert {one.num_shards for one in await leases.all()} == {2}


async def test_what_one_tells_all_others_hear_once_in_order(database: Database) -> None:
    a, b = (NewsTable(database, name, now=lambda: NOW) for name in "ab")
    assert await a.since(await a.newest()) == (0, [])
    told = [News("config", 7), News("forgotten", 2**62)]
    for one in told:
        await a.tell(one)
    await b.tell(News("config", 8))
    number, heard = await b.since(0)
    assert (number, heard) == (3, told)
    assert await b.since(number) == (number, [])
    assert await a.since(0) == (3, [News("config", 8)])


async def test_news_are_forgotten_and_numbers_go_on(database: Database) -> None:
    await NewsTable(database, "a", now=lambda: NOW).tell(News("forgotten", 42))
    later = NewsTable(database, "b", now=lambda: NOW + KEPT + timedelta(seconds=1))
    await later.clear_up()
    assert await database.fetch_all("SELECT * FROM news") == []
    assert await later.newest() == 1
    await later.tell(News("config", 1))
    assert await later.newest() == 2


async def test_turns_are_so_far_apart_whoever_asks(database: Database) -> None:
    turns = []
    for at, name in (
        (1000, "x"),
        (1001, "x"),
        (1002, "y"),
        (1003, "x"),
        (1004, "x"),
        (99_000, "x"),
        (99_001, "x"),
        (50_000, "x"),  # the clock was put back
        (50_001, "x"),
    ):
        async with database.transaction() as transaction:
            turns.append(await next_turn(transaction, name, at=at, apart=5000, within=10_000, longest=10_000))
    assert turns == [1000, 6000, 1002, 11_000, None, 99_000, 104_000, 50_000, 55_000]


async def test_what_is_done_once_for_all_is_done_by_one_and_again_later(database: Database) -> None:
    async def claim(at: int) -> bool:
        async with database.transaction() as transaction:
            return await claim_once(transaction, "job", at=at, lasts=100)

    assert [await claim(at) for at in (1000, 1000, 1099, 1100, 1101)] == [True, False, False, True, False]
    async with database.transaction() as transaction:
        await unclaim(transaction, "job")
    assert await claim(1102)
    assert await claim(200), "the clock was put back"
