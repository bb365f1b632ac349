"""A small model drafts as much as brings most, and less and less where that is too slow."""

from __future__ import annotations

import random

import pytest

from engine.runtime.draft_pace import LONGEST, DraftCosts, DraftPace


def known(plain_s: float = 0.040, draft_s: float = 0.005, row_s: float = 0.002) -> DraftCosts:
    """Return costs that were measured."""
    costs = DraftCosts()
    costs.record_plain(plain_s)
    costs.record_draft(4, 4 * draft_s, plain_s + 4 * row_s)
    return costs


def simulate(share: float, costs: DraftCosts, num_tokens: int = 2000) -> tuple[float, list[int]]:
    """Answer with drafts of which each token is accepted with a probability.

    Return how much faster that is than without them, and how many tokens each step drafted.
    """
    rng, pace = random.Random(0), DraftPace(costs)
    lengths: list[int] = []
    seconds, num_made = 0.0, 0
    while num_made < num_tokens:
        length = pace.length()
        lengths.append(length)
        num_accepted = 0
        while num_accepted < length and rng.random() < share:
            num_accepted += 1
        spent = costs.seconds(length)
        if length:
            pace.record(length, num_accepted, spent)
        seconds, num_made = seconds + spent, num_made + num_accepted + 1
    return num_made * costs.plain_s / seconds, lengths


def test_nothing_is_drafted_before_it_is_known_what_it_has_to_be_worth() -> None:
    costs = DraftCosts()
    pace = DraftPace(costs)
    assert pace.length() == 0
    costs.record_plain(0.040)
    assert pace.length() > 0


def test_a_model_that_guesses_well_drafts_long_and_one_that_guesses_badly_short() -> None:
    lasting = {share: simulate(share, known())[1][-200:] for share in (0.95, 0.7, 0.5)}
    means = [sum(lengths) / len(lengths) for lengths in lasting.values()]
    assert means == sorted(means, reverse=True)
    assert means[0] > LONGEST - 1.5
    assert 1 <= means[2] < 3.5


def test_it_is_nearly_as_fast_as_the_best_fixed_length() -> None:
    for share in (0.5, 0.7, 0.9):
        costs = known()
        fixed = [
            sum(share**i for i in range(num + 1)) * costs.plain_s / costs.seconds(num) for num in range(1, 9)
        ]
        assert simulate(share, costs)[0] > 0.93 * max(fixed)


@pytest.mark.parametrize(("share", "draft_s"), [(0.0, 0.005), (0.1, 0.010), (0.9, 0.060)])
def test_drafts_that_do_not_pay_cost_little(share: float, draft_s: float) -> None:
    faster, lengths = simulate(share, known(draft_s=draft_s), 400)
    assert faster > 0.95
    assert lengths[:4] != [0] * 4, "it was tried"
    assert sum(length > 0 for length in lengths) < 24


def test_drafts_that_begin_to_pay_are_made_again() -> None:
    pace = DraftPace(known())
    for _ in range(4):
        pace.record(3, 0, 0.070)
    assert [pace.length() for _ in range(15)] == [0] * 15
    for _ in range(2):
        assert pace.length() > 0
        pace.record(3, 3, 0.060)
    assert all(pace.length() > 0 for _ in range(20))


def test_one_hiccup_changes_little() -> None:
    costs = known()
    costs.record_plain(5.0)
    costs.record_draft(2, 3.0, 9.0)
    assert costs.plain_s < 0.045
    assert costs.draft_s < 0.006
    assert costs.row_s < 0.003
