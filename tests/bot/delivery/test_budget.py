"""How many requests the bot makes, and how growing answers slow down before they are too many."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.delivery.budget import FOR_GROWING, PER_SECOND, USED, WINDOW_S, RequestBudget
from bot.delivery.column import Columns
from bot.delivery.delivery import Delivery
from tests.bot.delivery.delivery_stage import INTERVAL_S, WORDS, FakeDiscord, in_virtual_time, now_s


@given(st.lists(st.floats(0, 0.2), max_size=200), st.floats(0.01, 1.0))
def test_there_are_never_more_requests_in_a_second_than_the_share_allows(
    pauses_s: list[float], share: float
) -> None:
    budget, at_s, made = RequestBudget(lambda: share), 0.0, list[float]()
    for pause_s in pauses_s:
        at_s += pause_s
        at_s += budget.wait_s(at_s)
        budget.note(at_s)
        made.append(at_s)
    most = max(1, int(PER_SECOND * USED * share))
    for number in range(len(made) - most):
        assert made[number + most] - made[number] >= WINDOW_S - 1e-6


def test_all_processes_together_stay_below_discords_limit() -> None:
    shares = (0.5, 0.25, 0.125, 0.125)
    assert sum(RequestBudget(lambda s=share: s).per_second for share in shares) < PER_SECOND  # type: ignore[misc]


@pytest.mark.parametrize("num_answers", [10, 60, 200])
def test_growing_answers_share_the_budget_alike_and_endings_wait_for_none_of_it(num_answers: int) -> None:
    async def play() -> None:
        columns, discords = Columns(RequestBudget()), [FakeDiscord() for _ in range(num_answers)]
        deliveries = [
            Delivery(
                discord, answer_id=number, on_part=_ignore, min_interval_s=INTERVAL_S,
                column=columns.of(number),
            )
            for number, discord in enumerate(discords)
        ]  # fmt: skip
        began_s = now_s()
        words = WORDS.split()
        for num_words in range(1, 120):
            for delivery in deliveries:
                delivery.update(" ".join(words[:num_words]))
            await asyncio.sleep(0.25)
        duration_s = now_s() - began_s
        edits = [sum(call.verb == "edit" for call in discord.calls) for discord in discords]
        allowed = PER_SECOND * USED * FOR_GROWING
        assert sum(edits) <= allowed * duration_s * 1.1
        assert max(edits) - min(edits) <= 1
        expected = duration_s / max(INTERVAL_S, num_answers / allowed)
        assert min(edits) >= 0.75 * expected
        asked_s = now_s()
        await asyncio.gather(*(one.finish("The end.") for one in deliveries))
        assert now_s() - asked_s <= INTERVAL_S + 0.2
        assert all(discord.contents == ["The end."] for discord in discords)

    in_virtual_time(play())


async def _ignore(_position: int, _discord_id: int) -> None: ...
