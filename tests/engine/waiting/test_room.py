"""The waiting room on an engine that only counts: order, room, places, bounds, and every way out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import NoRoomError, TooManyWaitingError
from engine.types import EngineLoad
from engine.waiting.room import HOLD_S, NUM_TOLD, RECHECK_S, Ticket, WaitingRoom
from tests.virtual_time import run, settle


@dataclass(eq=False)
class Counting:
    """An engine that holds so many answers and tokens, and says so."""

    max_requests: int = 1
    max_kv_tokens: int = 100
    held: list[int] = field(default_factory=list)
    refuses: int = 0

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(len(self.held), self.max_requests, 0, sum(self.held), self.max_kv_tokens)

    def begin(self, num_tokens: int) -> int:
        if self.refuses:
            self.refuses -= 1
            raise NoRoomError("Full.")
        assert self.load.has_room(num_tokens), "more was begun than the engine holds"
        self.held.append(num_tokens)
        return num_tokens


class Hall:
    """A room, and people in it who are known by a name."""

    def __init__(self, max_waiting: int = 100, **engine: Any) -> None:
        self.engine = Counting(**engine)
        self.room = WaitingRoom(lambda: self.engine.load, max_waiting=max_waiting)
        self.begun: list[str] = []
        self.running: list[str] = []
        self.places: dict[str, list[int]] = {}
        self.tickets: dict[str, Ticket] = {}
        self.waits: dict[str, asyncio.Task[int]] = {}
        self.costs: dict[str, int] = {}

    def come(self, name: str, num_tokens: int = 10, *, server: int = 0, user: int = 0) -> None:
        """Let somebody come and stand in line; a name is a conversation."""
        self.tickets[name] = self.room.enter((("server", server), ("user", user), ("channel", name)))
        self.line_up(name, num_tokens)

    def line_up(self, name: str, num_tokens: int) -> None:
        async def make() -> int:
            await asyncio.sleep(0)
            self.begun.append(name)
            num_begun = self.engine.begin(num_tokens)
            self.running.append(name)
            return num_begun

        self.costs[name] = num_tokens
        tell = self.places.setdefault(name, []).append
        self.waits[name] = asyncio.create_task(self.room.begin(self.tickets[name], num_tokens, make, tell))

    def end(self, name: str) -> None:
        """Let an answer end."""
        self.stop(name)
        self.room.leave(self.tickets[name])

    def stop(self, name: str) -> None:
        """Let the engine give an answer up."""
        self.running.remove(name)
        self.engine.held.remove(self.costs[name])


def test_one_after_the_other_is_called_and_told_its_place() -> None:
    async def play() -> None:
        hall = Hall()
        for number in range(5):
            hall.come(f"{number}", server=number)
        await settle()
        assert hall.begun == ["0"]
        assert [hall.places[f"{number}"] for number in range(5)] == [[], [1], [2], [3], [4]]
        for number in range(5):
            hall.end(f"{number}")
            await settle()
        assert hall.begun == ["0", "1", "2", "3", "4"]
        assert hall.places["4"] == [4, 3, 2, 1]

    run(play())


def test_who_needs_less_does_not_overtake_the_first_in_line() -> None:
    async def play() -> None:
        hall = Hall(max_requests=4, max_kv_tokens=100)
        hall.come("running", 60, server=1)
        hall.come("large", 50, server=2)
        hall.come("small", 10, server=3)
        await settle()
        assert hall.begun == ["running"]
        hall.end("running")
        await settle()
        assert hall.begun == ["running", "large", "small"]

    run(play())


def test_who_needs_more_than_there_is_begins_alone() -> None:
    async def play() -> None:
        hall = Hall(max_requests=4, max_kv_tokens=100)
        hall.come("small", 10, server=1)
        hall.come("giant", 500, server=2)
        await settle()
        assert hall.begun == ["small"]
        hall.end("small")
        await settle()
        assert hall.begun == ["small", "giant"]

    run(play())


def test_a_flood_of_one_server_keeps_another_one_waiting_for_one_turn_only() -> None:
    async def play() -> None:
        hall = Hall()
        for number in range(8):
            hall.come(f"flood {number}", server=1, user=number % 2)
        await settle()
        hall.come("other", server=2, user=9)
        await settle()
        assert hall.places["other"] == [1]
        hall.end("flood 0")
        await settle()
        assert hall.begun == ["flood 0", "other"]

    run(play())


def test_only_the_first_ones_are_told_again() -> None:
    async def play() -> None:
        hall = Hall()
        for number in range(7):
            hall.come(f"{number}", server=number)
        await settle()
        hall.end("0")
        await settle()
        told = [len(hall.places[f"{number}"]) for number in range(2, 7)]
        assert told == [2] * NUM_TOLD + [1] * (5 - NUM_TOLD)

    run(play())


def test_so_many_may_wait_and_no_more() -> None:
    async def play() -> None:
        hall = Hall(max_waiting=2, max_requests=2)
        for number in range(4):
            hall.come(f"{number}")  # two of them will begin
        with pytest.raises(TooManyWaitingError):
            hall.room.enter(("too", "many"))
        await settle()
        with pytest.raises(TooManyWaitingError):
            hall.room.enter(("too", "many"))
        hall.end("0")
        await settle()
        hall.come("one more")

    run(play())


def test_who_gives_up_in_line_makes_way() -> None:
    async def play() -> None:
        hall = Hall()
        for number in range(3):
            hall.come(f"{number}", server=number)
        await settle()
        hall.waits["1"].cancel()
        hall.end("0")  # called or not, it is no longer there
        await settle()
        hall.room.leave(hall.tickets["1"])
        await settle()
        assert hall.begun == ["0", "2"]
        assert hall.waits["1"].cancelled()

    run(play())


def test_a_turn_that_fails_is_taken_from_nobody() -> None:
    async def play() -> None:
        hall = Hall()
        hall.come("running", server=9)
        hall.come("first", server=1)
        hall.come("second", server=2)
        await settle()

        async def fail() -> int:
            raise ValueError("no more wanted")

        ticket = hall.room.enter((("server", 0), ("user", 0), ("channel", "odd")))
        failing = asyncio.create_task(hall.room.begin(ticket, 10, fail))
        await settle()
        hall.end("running")
        await settle()
        assert hall.begun == ["running", "first"]
        hall.end("first")
        await settle()
        assert hall.begun == ["running", "first", "second"]
        hall.end("second")
        with pytest.raises(ValueError, match="no more wanted"):
            await failing
        assert hall.room.has_space

    run(play())


def test_an_engine_that_refuses_is_asked_again() -> None:
    async def play() -> None:
        hall = Hall(refuses=2)
        hall.come("patient")
        assert await hall.waits["patient"] == 10
        assert hall.begun == ["patient"] * 3

    run(play())


def test_room_that_comes_by_itself_is_found() -> None:
    async def play() -> None:
        hall = Hall()
        hall.engine.held.append(10)  # of somebody who has no ticket
        hall.come("waiting")
        await settle()
        assert hall.begun == []
        hall.engine.held.clear()
        await asyncio.sleep(RECHECK_S)
        await settle()
        assert hall.begun == ["waiting"]

    run(play())


def test_an_answer_that_begins_anew_keeps_its_room_for_a_moment() -> None:
    async def play() -> None:
        hall = Hall()
        hall.come("burst", server=1)
        hall.come("other", server=2)
        await settle()
        hall.stop("burst")
        hall.room.begin_anew(hall.tickets["burst"])
        await settle()
        assert hall.begun == ["burst"]
        hall.line_up("burst", 20)
        await settle()
        assert hall.begun == ["burst", "burst"]

        hall.stop("burst")
        hall.room.begin_anew(hall.tickets["burst"])
        await asyncio.sleep(HOLD_S)
        await settle()
        assert hall.begun == ["burst", "burst", "other"]  # it took too long
        hall.line_up("burst", 20)
        hall.come("newcomer", server=3)
        await settle()
        hall.end("other")
        await settle()
        assert hall.begun[3:] == ["burst"]  # its turn was given back, so it came first

    run(play())


def test_an_answer_that_begins_anew_and_needs_more_than_there_is_waits() -> None:
    async def play() -> None:
        hall = Hall(max_requests=3, max_kv_tokens=100)
        hall.come("first", 50, server=1)
        hall.come("second", 50, server=2)
        await settle()
        hall.stop("second")
        hall.room.begin_anew(hall.tickets["second"])
        hall.line_up("second", 60)
        await settle()
        assert hall.begun == ["first", "second"]
        hall.end("first")
        await settle()
        assert hall.begun == ["first", "second", "second"]

    run(play())


def test_nothing_begins_while_the_room_is_drained() -> None:
    async def play() -> None:
        hall = Hall()
        hall.come("running")
        hall.come("waiting")
        await settle()
        assert not await hall.room.drain(5)
        draining = asyncio.create_task(hall.room.drain(5))
        await settle()
        hall.end("running")
        assert await draining
        await asyncio.sleep(2 * RECHECK_S)
        assert hall.begun == ["running"]
        assert not hall.room.has_space
        hall.room.resume()
        await settle()
        assert hall.begun == ["running", "waiting"]

    run(play())


Step = tuple[str, int, int, int]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "come", "come", "end", "end", "cancel", "anew"]),
            st.integers(0, 3),
            st.integers(0, 2),
            st.integers(1, 70),
        ),
        max_size=60,
    ),
    st.integers(1, 3),
)
def test_whatever_happens_nobody_is_overtaken_twice_by_the_same_and_all_room_comes_back(
    steps: list[Step], max_requests: int
) -> None:
    run(_play(steps, max_requests))


async def _play(steps: list[Step], max_requests: int) -> None:
    hall = Hall(max_requests=max_requests, max_kv_tokens=100)
    waiting: dict[str, dict[int, int]] = {}
    """By name, how often each server began meanwhile."""
    num_seen = 0
    for number, (what, server, user, cost) in enumerate(steps):
        if what == "come":
            name = f"{number} {server}"
            hall.come(name, cost, server=server, user=user)
            await asyncio.sleep(0)  # it stands in line now, unless it was called
            waiting[name] = {}
        elif what == "end" and hall.running:
            hall.end(hall.running[cost % len(hall.running)])
        elif what == "anew" and hall.running:
            name = hall.running[cost % len(hall.running)]
            hall.stop(name)
            hall.room.begin_anew(hall.tickets[name])
            hall.line_up(name, cost)
        elif what == "cancel" and waiting:
            name = list(waiting)[cost % len(waiting)]
            hall.waits[name].cancel()
            del waiting[name]
            await settle()
            hall.room.leave(hall.tickets[name])
        await settle()
        for name in hall.begun[num_seen:]:
            if waiting.pop(name, None) is not None:
                for other, counts in waiting.items():
                    begun = int(name.split()[1])
                    counts[begun] = counts.get(begun, 0) + 1
                    mine = counts.get(int(other.split()[1]), 0)
                    assert max(counts.values()) <= 1 + mine, counts
        num_seen = len(hall.begun)
    for name, ticket in hall.tickets.items():
        hall.waits[name].cancel()
        await settle()
        hall.room.leave(ticket)
    hall.engine.held.clear()
    assert not hall.room._tickets
    assert hall.room.has_space


async def test_left_tickets_leave_nothing_behind() -> None:
    hall = Hall()

    async def come_and_go() -> None:
        hall.come("a")
        await settle()
        hall.end("a")

    work: Coroutine[Any, Any, None] = come_and_go()
    await work
    assert not hall.room._tickets
    assert hall.room._recheck is None


def test_work_that_gives_way_is_told_as_soon_as_somebody_comes_and_counts_for_nothing() -> None:
    async def scene() -> None:
        hall = Hall(max_waiting=1)
        told: list[str] = []
        spare = hall.room.enter(give_way=lambda: told.append("away"))
        await asyncio.wait_for(hall.room.idle(), 1)
        assert told == []
        hall.come("one")
        hall.come("two")
        assert told[:1] == ["away"], "before anybody stands in line"
        await settle()
        assert hall.begun == ["one"]
        idle = asyncio.create_task(hall.room.idle())
        hall.room.leave(spare)
        hall.end("one")
        await settle()
        assert not idle.done()
        hall.end("two")
        await asyncio.wait_for(idle, 1)

    run(scene())


def test_while_the_room_is_drained_it_is_not_idle() -> None:
    async def scene() -> None:
        hall = Hall()
        told: list[str] = []
        hall.room.enter(give_way=lambda: told.append("away"))
        assert await hall.room.drain(1)
        assert told == ["away"]
        idle = asyncio.create_task(hall.room.idle())
        await settle()
        assert not idle.done()
        hall.room.resume()
        await asyncio.wait_for(idle, 1)

    run(scene())
