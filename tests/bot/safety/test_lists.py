"""Lists of words and patterns: what they find, in which disguise, and what they leave alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.safety.folding import fold
from bot.safety.lists import Finding, PatternError, TextLists, WordList, check_pattern, search

WORDS = WordList(["badger", "Two Words", "pre*", "屑", "дурак", "l33t"])


@pytest.mark.parametrize(
    "text",
    [
        "badger", "a BADGER!", "bádgér", "b4dg3r", "b a d g e r", "b.a.d.g.e.r", "b-a-d-g-e-r", "ваdger",
        "ｂａｄｇｅｒ", "𝓫𝓪𝓭𝓰𝓮𝓻", "b\u200ba\u200bd\u200bger", "ⓑⓐⓓⓖⓔⓡ",
        "two  words", "TWO\nWORDS", "tw0 w0rd5",
        "prefix", "preposition", "このクズ屑だ", "дурак", "ДУРАК", "leet", "1337 l33t",
        "**badger**", "||badger||",
        "`badger`", "~~bad~~badger", "@badger", "badger.",
    ],
)  # fmt: skip
def test_a_word_is_found_in_any_dress(text: str) -> None:
    assert WORDS.is_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "badgers",
        "honeybadgerlike",
        "two",
        "words two",
        "impress",
        "1984",
        "84 9 3 12",
        "",
        " ",
        "two, then words",
    ],
)
def test_other_words_are_left_alone(text: str) -> None:
    assert not WORDS.is_in(text)


def test_an_empty_list_finds_nothing() -> None:
    assert not WordList([]).is_in("anything")
    assert not WordList(["", " ", "*", "!!"]).is_in("anything ! *")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_every_character_is_folded_to_one_place_of_the_original(text: str) -> None:
    folded = fold(text)
    assert len(folded.origins) == len(folded.text)
    assert list(folded.origins) == sorted(folded.origins)
    assert all(0 <= origin < len(text) for origin in folded.origins)


@settings(deadline=None)
@given(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=10))
def test_no_text_breaks_a_list(text: str, words: list[str]) -> None:
    WordList(words).is_in(text)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "invalid"), ("[z-a]", "invalid"), (r"\8", "invalid"), ("x*", "matches_all"),
        ("", "matches_all"),
        ("a" * 201, "too_long"),
        ("a{1000000}", "slow"), ("a{100000,}", "slow"), ("(x{5,99999})", "slow"),
        ("((a{999}){999}){999}", "slow"),
        ("(a|aa)+$", "slow"), ("(?:a+)+b|(a|a)*$c", "slow"),
    ],
)  # fmt: skip
def test_a_pattern_that_cannot_be_used_is_refused_when_it_is_set(pattern: str, reason: str) -> None:
    with pytest.raises(PatternError) as caught:
        check_pattern(pattern)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "pattern", [r"\b\d{3}-\d{4}\b", "(?:foo|bar)s?", r"\p{Cyrillic}+", "a.{0,20}b", "(?<=x)y"]
)
def test_ordinary_patterns_are_taken(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


def test_a_pattern_that_takes_too_long_is_given_up_in_time() -> None:
    begun_s = time.perf_counter()
    assert search([r"(\w|\w\w)+\d$"], "x" * 5000 + "!", timeout_s=0.05) is Finding.UNDECIDED
    assert time.perf_counter() - begun_s < 1


async def test_lists_find_words_and_patterns() -> None:
    lists = TextLists(["badger"], [r"call \d+"])
    assert await lists.look("a badger") is Finding.FORBIDDEN
    assert await lists.look("please CALL 123") is Finding.FORBIDDEN
    assert await lists.look("call me") is Finding.CLEAN
    assert TextLists((), ()).is_empty
