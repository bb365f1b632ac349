"""Rate limits, the guard against loops and the pace of refusals, with a clock in the test's hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.errors import BlockedError, RateLimitedError, RepeatedError
from bot.servers.rates import (
    MAX_TIMES,
    WINDOW_S,
    Allowance,
    Buckets,
    Rate,
    RateLimits,
    RefusalPace,
    Repetitions,
)
from bot.servers.server_config import ServerConfig

FREE = ServerConfig()


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@given(st.integers(1, 60), st.lists(st.floats(0, 30), max_size=150))
def test_never_more_than_allowed_in_any_minute_after_the_first_rush(
    per_minute: int, pauses: list[float]
) -> None:
    clock = Clock()
    buckets, rate = Buckets(clock), Rate("key", per_minute)
    taken = []
    for pause in pauses:
        clock.now_s += pause
        if buckets.wait_s(rate) == 0:
            buckets.take([rate])
            taken.append(clock.now_s)
    for start in taken:
        assert sum(start <= at < start + 60 for at in taken) <= 2 * per_minute + 1


@given(st.integers(1, 60))
def test_after_the_time_that_was_told_one_may_ask(per_minute: int) -> None:
    clock = Clock()
    buckets, rate = Buckets(clock), Rate("key", per_minute)
    for _ in range(per_minute):
        assert buckets.wait_s(rate) == 0
        buckets.take([rate])
    wait_s = buckets.wait_s(rate)
    assert 0 < wait_s <= 60 / per_minute + 0.001
    clock.now_s += wait_s + 1e-6
    assert buckets.wait_s(rate) == 0


def test_memory_is_bounded() -> None:
    buckets = Buckets(Clock(), max_buckets=3)
    for number in range(10):
        buckets.take([Rate(number, 1)])
    assert buckets.wait_s(Rate(9, 1)) > 0
    assert buckets.wait_s(Rate(0, 1)) == 0


def test_people_and_servers_are_counted_apart() -> None:
    limits = RateLimits(Allowance(per_user=2, per_server=3), Clock())
    limits.admit(1, 10, FREE)
    limits.admit(1, 10, FREE)
    with pytest.raises(RateLimitedError, match="You've asked a lot") as caught:
        limits.admit(1, 10, FREE)
    assert "in 30 s" in str(caught.value)
    limits.admit(2, 10, FREE)
    with pytest.raises(RateLimitedError, match="People here have asked"):
        limits.admit(3, 10, FREE)
    limits.admit(3, 11, FREE)
    limits.admit(4, None, FREE)


def test_a_refusal_costs_nothing() -> None:
    clock = Clock()
    limits = RateLimits(Allowance(per_user=1, per_server=0), clock)
    limits.admit(1, None, FREE)
    for _ in range(100):
        with pytest.raises(RateLimitedError):
            limits.admit(1, None, FREE)
    clock.now_s += 60
    limits.admit(1, None, FREE)


def test_a_server_can_be_stricter_and_not_laxer() -> None:
    strict, lax = ServerConfig(user_per_minute=1), ServerConfig(user_per_minute=1000)
    limits = RateLimits(Allowance(per_user=2, per_server=0), Clock())
    limits.admit(1, 10, strict)
    with pytest.raises(RateLimitedError):
        limits.admit(1, 10, strict)
    limits.admit(1, 11, lax)
    with pytest.raises(RateLimitedError):
        limits.admit(1, 11, lax)


def test_without_limits_nobody_waits() -> None:
    limits = RateLimits(Allowance(per_user=0, per_server=0), Clock())
    for _ in range(1000):
        limits.admit(1, 10, FREE)


def test_the_same_text_again_and_again_is_a_loop_for_a_while() -> None:
    clock = Clock()
    guard = Repetitions(clock)
    assert [guard.is_loop(1, 5, f"Ping {' ' * n}me") for n in range(MAX_TIMES)] == [False] * MAX_TIMES
    assert guard.is_loop(1, 5, "ping me")
    assert not guard.is_loop(2, 5, "ping me")
    assert not guard.is_loop(1, 6, "ping me")
    clock.now_s += WINDOW_S
    assert not guard.is_loop(1, 5, "ping me")


def test_the_guards_memory_is_bounded() -> None:
    guard = Repetitions(Clock(), max_texts=2)
    for _ in range(MAX_TIMES):
        guard.is_loop(1, 1, "a")
    guard.is_loop(1, 1, "b")
    guard.is_loop(1, 1, "c")
    assert not guard.is_loop(1, 1, "a")


def test_the_same_refusal_is_told_from_time_to_time_only() -> None:
    clock = Clock()
    pace = RefusalPace(clock)
    assert [pace.may_tell(1, 10, BlockedError()) for _ in range(3)] == [True, False, False]
    assert pace.may_tell(1, 10, RepeatedError())
    assert pace.may_tell(1, 11, BlockedError())
    assert pace.may_tell(2, 10, BlockedError())
    clock.now_s += BlockedError.quiet_s
    assert pace.may_tell(1, 10, BlockedError())
