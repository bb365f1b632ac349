"""Parameters: read, shown, applied."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.config import LIVE
from bot.config_keys import CHAT_KEYS
from bot.errors import ParameterError
from bot.parameters import (
    ANSWER_PRESETS,
    PARAMETERS,
    ChatParameters,
    apply_overrides,
    describe,
    find_parameter,
    read_limits,
    written_parameters,
)
from engine.errors import InvalidParameterError
from engine.runtime.sampling import DEVICE_ROW
from engine.types import RANGES, Range, SamplingParams

DEFAULTS = ChatParameters()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0", 0.0),
        ("temperature", " 0,7 ", 0.7),
        ("top_k", "40", 40),
        ("top_p", "1", 1.0),
        ("repetition_penalty", "1.25", 1.25),
        ("frequency_penalty", "-0,5", -0.5),
        ("max_new_tokens", "+64", 64),
        ("max_history_tokens", "2048", 2048),
    ],
)
def test_values_are_read(name: str, text: str, value: float) -> None:
    read = find_parameter(name).parse(text)
    assert read == value
    assert isinstance(read, int) is PARAMETERS[name].is_whole


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "hot"),
        ("temperature", ""),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "1e0"),
        ("temperature", "2.01"),
        ("temperature", "-0.1"),
        ("top_p", "0"),
        ("top_k", "3.5"),
        ("top_k", "-1"),
        ("max_new_tokens", "0"),
        ("max_new_tokens", "9" * 30),
        ("max_history_tokens", "1"),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(name: str, text: str) -> None:
    with pytest.raises(ParameterError, match=rf"^{name} must be .* from .* to .*\.$"):
        find_parameter(name).parse(text)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ParameterError, match="temperature, top_p"):
        find_parameter("speed")


@given(st.text(max_size=20))
def test_reading_never_fails_otherwise(text: str) -> None:
    for parameter in PARAMETERS.values():
        try:
            value = parameter.parse(text)
        except ParameterError:
            continue
        assert math.isfinite(value)
        assert parameter.accepts(value)


def test_overrides_apply_and_bad_ones_do_not() -> None:
    overrides = {
        "temperature": 0.1,
        "top_k": "many",
        "top_p": 7,
        "max_new_tokens": True,
        "unknown": 1,
        "system_prompt": "Be brief.",
    }
    changed = apply_overrides(DEFAULTS, overrides)
    assert changed == ChatParameters(SamplingParams(temperature=0.1), system_prompt="Be brief.")


def test_all_parameters_reach_the_engine() -> None:
    lowest = {name: parameter.allowed.low for name, parameter in PARAMETERS.items()}
    chosen = {name: PARAMETERS[name].nearest(value) for name, value in lowest.items()}
    changed = apply_overrides(DEFAULTS, chosen)
    assert {name: changed.value(name) for name in PARAMETERS} == chosen
    assert changed.sampling == SamplingParams(**{name: chosen[name] for name in RANGES} | {"seed": None})  # type: ignore[arg-type]


def test_bad_defaults_are_refused() -> None:
    with pytest.raises(InvalidParameterError, match="temperature"):
        ChatParameters().with_values({"temperature": 9})
    with pytest.raises(InvalidParameterError, match="max_history_tokens"):
        ChatParameters(max_history_tokens=1)


@pytest.mark.parametrize(
    ("max_new", "max_history", "context", "budget"),
    [(512, 3072, 4096, 3072), (512, 3072, 2048, 1536), (4096, 3072, 4096, 2048), (32768, 128, 2048, 128)],
)
def test_the_prompt_budget_leaves_room_for_the_answer(
    max_new: int, max_history: int, context: int, budget: int
) -> None:
    parameters = ChatParameters(SamplingParams(max_new_tokens=max_new), max_history_tokens=max_history)
    assert parameters.prompt_budget(context) == budget


def test_description_shows_value_default_and_range() -> None:
    lines = describe(DEFAULTS, {"top_k": 7}, {"temperature": 0.2})
    assert len(lines) == len(PARAMETERS) - 1, "thinking is the model's own matter where it has no switch"
    assert lines[0].startswith("**temperature** = `0.2` (set here; otherwise 0.7, 0 to 2):")
    assert lines[1].startswith("**top_p** = `0.9` (default, 0.01 to 1):")
    assert lines[2].startswith("**top_k** = `7` (this server's default; mine is 40, 0 to 1000):")


def test_layers_lie_over_each_other_within_the_operators_limits() -> None:
    limits = read_limits("temperature=0..1, max_new_tokens=1..100")
    defaults = ChatParameters(SamplingParams(max_new_tokens=80), limits=limits)
    changed = apply_overrides(
        defaults, {"temperature": 0.5, "top_k": 9, "max_new_tokens": 500}, {"temperature": 1.5, "top_k": 8}
    )
    assert changed.sampling == SamplingParams(temperature=0.5, top_k=8, max_new_tokens=80)
    assert "(default, 0 to 1)" in describe(defaults, {}, {})[0]


def test_a_models_own_values_lie_below_all_that_somebody_chose() -> None:
    defaults = ChatParameters(SamplingParams(top_p=0.5), chosen=frozenset({"top_p"}))
    own = defaults.with_advice({"temperature": 0.2, "top_p": 0.95, "top_k": 64.0, "unheard_of": 1})
    assert own.sampling == SamplingParams(temperature=0.2, top_p=0.5, top_k=64)
    assert isinstance(own.sampling.top_k, int)
    assert apply_overrides(own, {"temperature": 0.4}, {"top_k": 5}).sampling == SamplingParams(
        temperature=0.4, top_p=0.5, top_k=5
    )
    lines = {line.split("**")[1]: line for line in describe(own, {"temperature": 0.4}, {})}
    assert "`0.4` (this server's default; mine is 0.2" in lines["temperature"]
    assert "`64` (the model's own, 0 to 1000)" in lines["top_k"]
    assert "`0.5` (default" in lines["top_p"]
    assert own.with_advice({}).sampling == own.sampling


def test_the_operators_limits_bound_a_models_own_values() -> None:
    limited = ChatParameters(limits=read_limits("temperature=0..0.5")).with_advice({"temperature": 1.0})
    assert limited.sampling.temperature == 0.5


def test_thinking_is_switched_on_or_off() -> None:
    thinking = PARAMETERS["thinking"]
    assert [thinking.parse(text) for text in (" On", "off", "1", "0")] == [1, 0, 1, 0]
    assert [thinking.format(value) for value in (1, 0)] == ["on", "off"]
    with pytest.raises(ParameterError, match="thinking must be one of: `on` / `off`"):
        thinking.parse("2")
    with pytest.raises(ParameterError, match="must be one of: `off`"):
        thinking.within(read_limits("thinking=0..0")).parse("on")
    assert written_parameters([("thinking", 0), ("top_k", 5)]) == {"thinking": "off", "top_k": "5"}


def test_a_model_that_can_be_switched_has_a_default_of_its_own() -> None:
    assert DEFAULTS.thinks is None
    own = DEFAULTS.with_advice({"thinking": 1})
    assert own.thinks is True
    line = describe(own, {}, {})[-1]
    assert line.startswith(
        "**thinking** = `on` (the model's own, on or off): whether I think before I answer"
    )
    assert describe(own, {"thinking": 0}, {})[-1].startswith(
        "**thinking** = `off` (this server's default; mine is on"
    )
    off = ChatParameters(thinking=0, chosen=frozenset({"thinking"}))
    assert off.with_advice({"thinking": 1}).thinks is False


def test_what_the_engine_declares_is_a_setting_of_the_operator_and_of_conversations() -> None:
    names = [name for name in RANGES if name != "seed"]
    assert list(PARAMETERS) == [*names, "max_history_tokens", "seed", "thinking"]
    own = ("max_history_tokens", "thinking")
    assert [key.name for key in CHAT_KEYS] == [name.upper() for name in (*names, *own)]
    assert {key.name for key in CHAT_KEYS} < LIVE
    assert (*(name for name in names if name != "max_new_tokens"), "uniform") == DEVICE_ROW


def test_limits_may_lie_below_zero() -> None:
    limits = read_limits("frequency_penalty=-1.5..-0.5, presence_penalty = -1 .. 1")
    assert limits == {"frequency_penalty": Range(-1.5, -0.5), "presence_penalty": Range(-1, 1)}
    defaults = ChatParameters(limits=limits)
    assert apply_overrides(defaults, {"presence_penalty": -1.0}).sampling.presence_penalty == -1.0
    assert apply_overrides(defaults, {"presence_penalty": 1.5}) == defaults


@pytest.mark.parametrize("text", ["speed=1..2", "temperature", "top_p=0..3", "top_p=1..0.5", "top_k=a..b"])
def test_bad_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        read_limits(text)


def test_a_seed_reaches_the_engine_and_0_is_none() -> None:
    seeded = ChatParameters().with_values({"seed": 7})
    assert (seeded.sampling.seed, seeded.value("seed")) == (7, 7)
    assert (seeded.with_values({"seed": 0}), DEFAULTS.value("seed")) == (DEFAULTS, 0)


@pytest.mark.parametrize("name", ANSWER_PRESETS)
def test_presets_are_allowed_values_and_bend_to_limits(name: str) -> None:
    limits = read_limits("temperature=0.5..0.6, top_k=30..30")
    for key, value in ANSWER_PRESETS[name].items():
        assert PARAMETERS[key].accepts(value)
        bounded = PARAMETERS[key].within(limits)
        assert bounded.accepts(bounded.nearest(value))
