"""Whose turn it is."""

from __future__ import annotations

from typing import cast

from engine.waiting.fairness import MAX_REMEMBERED, Claim, FairOrder


def claim(server: int, user: int, channel: int, arrival: int) -> Claim:
    return Claim((("server", server), ("user", user), ("channel", channel)), arrival)


def test_turns_go_round_servers_then_people_then_channels() -> None:
    order, arrival = FairOrder(), iter(range(1000))
    claims = [
        claim(server, user, channel, next(arrival))
        for server in (1, 2)
        for user in (10 * server, 10 * server + 1)
        for channel in (100 * user, 100 * user + 1)
        for _ in range(2)
    ]
    served: list[list[int]] = []
    while claims:
        first = order.ordered(claims)[0]
        order.served(first)
        claims.remove(first)
        served.append([number for _, number in cast("tuple[tuple[str, int], ...]", first.keys)])
    assert [server for server, _, _ in served] == [1, 2] * 8
    assert [user for server, user, _ in served if server == 1] == [10, 11] * 4
    assert [channel for _, user, channel in served if user == 10] == [1000, 1001] * 2


def test_what_is_remembered_of_turns_is_bounded() -> None:
    order = FairOrder()
    for number in range(3 * MAX_REMEMBERED):
        order.served(claim(number, number, number, number))
    assert len(order._last_turn) <= MAX_REMEMBERED


def test_a_turn_that_came_to_nothing_costs_nobody_their_place() -> None:
    order = FairOrder()
    mine, other = claim(1, 10, 100, 1), claim(2, 20, 200, 2)
    direct = Claim((("user", 5), ("user", 5), ("channel", 9)), 3)
    for one in (mine, other, direct):
        order.served(one)
    before = order.ordered([other, direct, mine])
    turns = [order.served(mine), order.served(direct)]
    for turn in turns:
        order.returned(turn)
    assert order.ordered([other, direct, mine]) == before == [mine, other, direct]


def test_a_turn_is_not_given_back_to_those_who_had_another_one_since() -> None:
    order = FairOrder()
    mine, same_server, other = claim(1, 10, 100, 1), claim(1, 11, 101, 2), claim(2, 20, 200, 3)
    turn = order.served(mine)
    order.served(other)
    order.served(same_server)
    order.returned(turn)
    assert order.ordered([mine, other]) == [other, mine]
