"""The filter over answers: whole, in pieces, across borders, and in disguise."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.safety.output_filter import FilterStream, OutputFilter

FILTER = OutputFilter()
TOKEN = "MTIzNDU2Nzg5MDEyMzQ1Njc4.GhIjKl." + "aB3" * 10
FORBIDDEN = (
    "discord.gg/abc123",
    "https://discord.com/invite/abc",
    "discordapp.com/invite/a-b",
    "HTTPS://DISCORD.GG/ABC",
    "discord.me/server",
    TOKEN,
    "https://discord.com/api/webhooks/123456789012345678/" + "x" * 60,
    "ghp_" + "a1" * 18,
    "sk-" + "abcDEF" * 6,
    "AKIAIOSFODNN7EXAMPLE",
    "@everyone",
    "@here",
    "@EVERYONE",
)
DISGUISED = (
    "disc\u200bord.gg/abc",
    "d\u00adiscord.gg/abc",
    "ｄｉｓｃｏｒｄ．ｇｇ／abc",
    "discord。gg/abc",
    "dіscоrd.gg/abc",
    "https:\\\\discord.gg\\abc",
    "discord.com/%69nvite/abc",
    "discord.com//invite//abc",
    "discord.com/x/../invite/abc",
    "𝐝𝐢𝐬𝐜𝐨𝐫𝐝.gg/abc",
    "ⓓⓘⓢⓒⓞⓡⓓ.gg/abc",
)
FRAGMENTS = st.sampled_from(
    [*FORBIDDEN, *DISGUISED, "discord", ".gg/", "@", "every", "one", "here", "a", " ", "\n", "é", "日本", "`"]
)
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(max_size=6)), max_size=12).map("".join)


def is_clean(text: str) -> bool:
    return FILTER.filtered(text) == text


@pytest.mark.parametrize("text", [*FORBIDDEN, *DISGUISED])
def test_it_is_taken_out_of_its_surroundings(text: str) -> None:
    filtered = FILTER.filtered(f"before {text} after")
    assert text not in filtered
    assert filtered.startswith("before ")
    assert filtered.endswith(" after")


@pytest.mark.parametrize(
    "text",
    [
        "Look at https://discord.com/channels/1/2/3 and discord.js.",
        "my e-mail is anna@example.com; everyone is here",
        "a.b.c version 1.2.3-rc.4",
        "print('hello')  # 100%",
        "日本語の長い文章はそのまま表示されます。",
        "ask@there, @hers",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert FILTER.filtered(text) == text


def test_invitations_stay_where_the_server_wants_them() -> None:
    lax = OutputFilter(removes_invites=False)
    assert lax.filtered("discord.gg/abc @everyone") == "discord.gg/abc @\u200beveryone"


@settings(deadline=None)
@given(TEXTS)
@example("@@everyoneeveryone")
@example("discord.gg/@everyone")
def test_filtering_twice_changes_nothing_more(text: str) -> None:
    assert is_clean(FILTER.filtered(text))


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.lists(st.integers(1, 9), max_size=60))
@example(TOKEN, [19, 1, 30])
def test_nothing_forbidden_is_ever_shown_however_the_text_arrives(text: str, sizes: list[int]) -> None:
    stream = FilterStream(FILTER)
    at = 0
    for size in sizes:
        at += size
        shown = stream.feed(text[:at], final=False)
        assert is_clean(shown)
        assert len(text[:at]) - len(shown) < 4200
    final = stream.feed(text, final=True)
    assert is_clean(final)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["word", " ", "\n", "Grüße", "日本", "1.5", "."]), max_size=40).map("".join))
def test_of_harmless_text_all_is_shown_but_for_a_word_at_most(text: str) -> None:
    stream = FilterStream(FILTER)
    for at in range(len(text)):
        shown = stream.feed(text[:at], final=False)
        assert text.startswith(shown)
        assert at - len(shown) <= 61
    assert stream.feed(text, final=True) == text


def test_a_text_that_was_cut_at_its_end_is_filtered_as_a_whole() -> None:
    stream = FilterStream(FILTER)
    stream.feed("hello @everyone and more", final=False)
    assert stream.feed("hello @here", final=True) == "hello @\u200bhere"


ENDLESS = (
    "a" * 20_000,
    "@" * 20_000,
    "é" * 20_000,
    "discord." * 2500,
    "-----begin " * 2000,
    "discord.com" + "/" * 8000,
    "discord.com/a/b/" * 800,
    "discord:" + "/" * 8000,
    "discord.com/api/" + "/" * 8000,
    "discord.gg" + "%2f" * 3000,
    "discord.com/" + "%69" * 3000,
    ("a" * 30 + ".") * 300,
)


@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: text[:16])
def test_it_takes_no_long_time(text: str) -> None:
    begun_s = time.perf_counter()
    FILTER.filtered(text)
    stream = FilterStream(FILTER)
    for at in range(0, len(text), 500):
        stream.feed(text[:at], final=False)
    assert time.perf_counter() - begun_s < 5
