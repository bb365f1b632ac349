"""Spoilers and mentions that a model makes have no effect; code and lengths stay."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.delivery.markup import scan
from bot.delivery.render import AT, BAR, defuse, hidden, render
from tests.bot.delivery.test_render import long_markdown, markdown

risky = st.sampled_from(
    ["||", "|||", "<@1>", "<@!22>", "<@&3>", "@everyone", "@HERE", "`", "```", "a@b.c", "x"]
)
texts = st.lists(risky | st.text(max_size=5), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a ||secret|| b", f"a ||secret|{BAR} b"),
        ("a || b || c |||d||", f"a || b |{BAR} c |{BAR}{BAR}d|{BAR}"),
        ("make build || echo failed", None),
        ("if a || b:\n    `c || d` || e", f"if a || b:\n    `c || d` |{BAR} e"),
        ("|| |", None),
        ("||||", f"|{BAR * 3}"),
        ("hi <@123> and <@&4> and <@!5>", f"hi <{AT}123> and <{AT}&4> and <{AT}!5>"),
        ("@everyone @Here", f"{AT}everyone {AT}Here"),
        ("mail anna@example.org, see <#12> <:llama:34> <t:1:R>", None),
        ("| a | b |", None),
        ("`if (a || b) <@1>`", None),
        ("```js\nif (a || b) @everyone\n```", None),
        ("```js\na || b\n```\n||c||", f"```js\na || b\n```\n||c|{BAR}"),
    ],
)
def test_what_is_changed_and_what_is_not(text: str, shown: str | None) -> None:
    assert defuse(text) == (text if shown is None else shown)


@settings(max_examples=300, deadline=None)
@given(texts | markdown | long_markdown, st.booleans())
def test_no_part_of_any_answer_has_an_effect(text: str, final: bool) -> None:
    for part in render(text, final=final):
        found = scan(part, 0, len(part), None, complete=True)
        code = [(start, end) for start, end in found.atoms if part[start] == "`"]
        bars = 0
        for match in re.finditer(r"\|\|+|<@[!&]?\d|@everyone|@here", part, re.IGNORECASE):
            at = match.start()
            if found.fence_at(at) or any(start <= at < end for start, end in code):
                continue
            assert match[0][0] == "|"
            assert len(match[0]) < 4
            bars += 1
        assert bars < 2, "a spoiler needs two"


@settings(max_examples=300, deadline=None)
@given(texts | markdown)
def test_it_changes_no_length_and_once_is_enough(text: str) -> None:
    assert len(defuse(text).encode("utf-16-le", "replace")) == len(text.encode("utf-16-le", "replace"))
    assert defuse(defuse(text)) == defuse(text)


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(10, 60))
def test_what_is_hidden_is_one_spoiler_and_nothing_else(text: str, length: int) -> None:
    spoiler = hidden(text, length)
    assert len(spoiler.encode("utf-16-le", "replace")) // 2 <= length
    assert bool(spoiler) == bool(text.strip())
    if spoiler:
        assert spoiler.startswith("||")
        assert spoiler.endswith("||")
        assert not re.search(r"\||`|@", spoiler[2:-2])
