"""What is told of words that were not for us: where it stands, what it may take, and whose it is."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from bot.conversation.prompting import FittedPrompt, with_talk
from bot.conversation.talk import SHARE, Heard, Moment, lately, lines_of, told
from engine.types import TALK
from tests.bot.conversation.test_strides import Past
from tests.fakes import CONTROL_TAG

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
LIMIT = 1000


def heard(text: str, number: int = 1, author_id: int = 7, name: str = "Bob") -> Heard:
    return Heard(number, 5, author_id, name, text, NOW)


TEXTS = st.text(max_size=300)
NAMES = st.text(max_size=40)
ALL_HEARD = st.lists(st.builds(heard, TEXTS, author_id=st.integers(1, 4), name=NAMES), max_size=12)


def fitted_with(past: Past, question: str, said: list[Heard], room: int) -> tuple[FittedPrompt, FittedPrompt]:
    fitted = past.fit(question)
    return fitted, with_talk(past.engine, fitted, said, int(LIMIT * SHARE), room)


@given(ALL_HEARD, st.integers(0, 30), st.text(min_size=1, max_size=200), st.integers(LIMIT, 2 * LIMIT))
def test_the_history_and_the_question_are_what_they_are_without_it(
    said: list[Heard], num_turns: int, question: str, room: int
) -> None:
    past = Past(LIMIT)
    past.fill(num_turns)
    without, fitted = fitted_with(past, question, said, room)
    assert (fitted.view_from, fitted.num_left_out) == (without.view_from, without.num_left_out)
    assert fitted.messages[:-1] == without.messages[:-1]
    assert fitted.messages[-1].content.endswith(without.messages[-1].content)
    assert len(fitted.prompt.ids) <= room
    assert len(fitted.prompt.ids) - len(without.prompt.ids) <= LIMIT * SHARE


@given(ALL_HEARD.filter(bool), st.integers(1, 8))
def test_it_stands_with_the_question_so_that_all_before_it_can_be_used_again(
    said: list[Heard], num_turns: int
) -> None:
    past = Past(10_000)
    past.fill(num_turns)
    without, fitted = fitted_with(past, "what now?", said, 20_000)
    num_common = next(
        (
            at
            for at, (one, other) in enumerate(zip(without.prompt.ids, fitted.prompt.ids, strict=False))
            if one != other
        ),
        len(without.prompt.ids),
    )
    assert num_common >= len(without.prompt.ids) - len(b"what now?")


@given(ALL_HEARD)
def test_nobody_can_speak_with_another_ones_name_or_leave_the_quote(said: list[Heard]) -> None:
    lines = lines_of(said)
    assert len(lines) == len(said)
    names: dict[int, str] = {}
    for one, line in zip(said, lines, strict=True):
        first, *more = line.split("\n")
        name = first.removeprefix("> ").split(": ", 1)[0]
        assert names.setdefault(one.author_id, name) == name
        assert all(other.startswith(">     ") for other in more)
        assert not set("\r\x0b\x0c\x1c\x85\u2028\u2029") & set(line)
    assert len(set(names.values())) == len(names), "namesakes are told apart"


def test_what_is_told_begins_with_what_it_is_and_the_newest_stay() -> None:
    lines = ["> Bob: one", "> Bob: two", "> Bob: three"]
    room = len(f"{TALK}\n\n") + len("> Bob: two\n> Bob: three\n")
    assert told(lines, len, room) == f"{TALK}\n> Bob: two\n> Bob: three"
    assert told(lines, len, len(TALK)) == ""
    assert told([], len, LIMIT) == ""


def test_unsafe_words_are_left_out_and_the_others_stay() -> None:
    _, fitted = fitted_with(Past(), "hi", [heard(CONTROL_TAG), heard("harmless")], LIMIT)
    assert fitted.messages[-1].content == f"{TALK}\n> Bob: harmless\n\nhi"


def test_only_what_came_before_and_lately_counts_whatever_the_order() -> None:
    moment = Moment(1, 5, 100, NOW)
    before, after = heard("before", 99), heard("after", 101)
    old = dataclasses.replace(heard("old", 1), said_at=NOW - timedelta(days=1))
    assert lately([after, before, heard("earlier", 98), old], moment) == [heard("earlier", 98), before]
