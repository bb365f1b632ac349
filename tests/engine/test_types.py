"""Sampling parameters refuse what cannot be sampled with."""

from __future__ import annotations

import math

import pytest

from engine.errors import InvalidParameterError
from engine.types import RANGES, SamplingParams


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_of_each_range_are_allowed(name: str) -> None:
    allowed = RANGES[name]
    for value in (allowed.low, allowed.high):
        assert getattr(SamplingParams(**{name: value}), name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -2.1, 10.0**30])
def test_values_outside_are_refused_and_named(name: str, bad: float) -> None:
    with pytest.raises(InvalidParameterError, match=f"^{name} must be between .* and .*, not .*\\.$"):
        SamplingParams(**{name: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "bad"),
    [("temperature", 2.01), ("top_p", 0.0), ("repetition_penalty", 0.49), ("max_new_tokens", 0)],
)
def test_values_just_outside_are_refused(name: str, bad: float) -> None:
    with pytest.raises(InvalidParameterError):
        SamplingParams(**{name: bad})  # type: ignore[arg-type]


def test_the_seed_may_be_left_open() -> None:
    assert SamplingParams(seed=None).seed is None


@pytest.mark.parametrize("stop", [("",), ("end", "")])
def test_an_empty_stop_string_is_refused(stop: tuple[str, ...]) -> None:
    with pytest.raises(InvalidParameterError, match="stop string"):
        SamplingParams(stop=stop)


def test_a_bad_parameter_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="temperature"):
        SamplingParams(temperature=-1)
