"""What the log tells of an exception: where it came from, and nothing that somebody wrote."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from engine.logs import describe_fault
from storage.errors import NotFoundError

WORDS = "what somebody wrote"


def fault(act: Callable[[], object]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any
        act()
    return describe_fault(caught.value)


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda: int(WORDS), "ValueError"),
        (lambda: dict[str, int]()[WORDS], "KeyError"),
        (lambda: json.loads(WORDS), "json.decoder.JSONDecodeError"),
        (lambda: f"{WORDS} \ud800".encode(), "UnicodeEncodeError"),
    ],
)
def test_values_are_left_out_and_the_place_is_told(act: Callable[[], object], kind: str) -> None:
    text = fault(act)
    assert text.endswith(kind)
    assert "test_faults.py" in text
    assert WORDS not in text


def test_what_names_no_value_is_told() -> None:
    assert describe_fault(TypeError("an integer is needed")).endswith("TypeError: an integer is needed")
    assert describe_fault(NotFoundError()).endswith(f"NotFoundError: {NotFoundError()}")


def test_causes_come_first_and_as_carefully() -> None:
    def act() -> None:
        try:
            int(WORDS)
        except ValueError as error:
            raise OSError("The disk is full.") from error

    text = fault(act)
    assert text.index("ValueError") < text.index("OSError: The disk is full.")
    assert WORDS not in text


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = OSError("one"), OSError("two")
    first.__cause__, second.__cause__ = second, first
    assert describe_fault(first).count("Traceback") == 2
