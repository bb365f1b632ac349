"""The filter over answers: whole, in pieces, across borders, in disguise, and what it must leave alone."""

from __future__ import annotations

import base64
import random
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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


ROOT = Path(__file__).parents[3]
CASED, MIXED = string.ascii_letters + string.digits, string.ascii_letters + string.digits + "_-"
UPPER, HEX = string.ascii_uppercase + "234567", "0123456789abcdef"


def made_up_keys(chance: random.Random) -> Iterator[str]:
    """Give a key of every kind, made as whoever gives out such keys makes them."""

    def some(alphabet: str, length: int) -> str:
        always = "aZ7" if set("aZ7") <= set(alphabet) else ""
        return "".join(chance.choices(alphabet, k=length - len(always))) + always

    user = base64.urlsafe_b64encode(str(chance.randrange(10**17, 10**19)).encode()).decode().rstrip("=")
    yield f"{user}.{some(MIXED, 6)}.{some(MIXED, chance.choice([27, 38]))}"
    yield f"mfa.{some(MIXED, 84)}"
    yield f"https://discord.com/api/webhooks/{some(string.digits, 19)}/{some(MIXED, 68)}"
    for kind in "pousr":
        yield f"gh{kind}_{some(CASED, 36)}"
    yield f"github_pat_{some(CASED, 22)}_{some(CASED, 59)}"
    yield f"glpat-{some(MIXED, 20)}"
    yield f"sk-{some(CASED, 20)}T3BlbkFJ{some(CASED, 20)}"
    yield f"sk-proj-{some(MIXED, 74)}T3BlbkFJ{some(MIXED, 74)}"
    yield f"sk-ant-api03-{some(MIXED, 93)}AA"
    yield f"sk-or-v1-{some(HEX, 64)}"
    yield f"sk-{some(HEX, 30)}a1"
    yield f"sk_live_{some(CASED, 24)}"
    yield f"AIza{some(MIXED, 35)}"
    yield f"hf_{some(CASED, 34)}"
    yield f"npm_{some(CASED, 36)}"
    yield f"pypi-AgEIcHlwaS5vcmc{some(MIXED, 120)}"
    yield f"AKIA{some(UPPER, 16)}"
    yield f"ASIA{some(UPPER, 16)}"
    yield f"xoxb-{some(string.digits, 12)}-{some(string.digits, 13)}-{some(CASED, 24)}"
    yield f"xapp-1-A{some(UPPER, 10)}-{some(string.digits, 13)}-{some(HEX, 64)}"
    lines = "\n".join(some(CASED + "+/", 64) for _ in range(6))
    for label in ("", "RSA ", "OPENSSH "):
        yield f"-----BEGIN {label}PRIVATE KEY-----\n{lines}"


@pytest.mark.parametrize("seed", range(20))
def test_keys_of_every_kind_are_gone_also_where_they_come_in_pieces(seed: int) -> None:
    chance = random.Random(seed)
    for key in made_up_keys(chance):
        for around in ("{}", "key={}", "'{}'", "Use `{}`, please.", '{{"token": "{}"}}'):
            text = around.format(key)
            assert FILTER.filtered(text) == around.format("[secret removed]"), key
            stream, at, shown = FilterStream(FILTER), 0, ""
            while at < len(text):
                at += chance.randint(1, 12)
                now = stream.feed(text[:at], final=at >= len(text))
                assert now.startswith(shown), "what was shown stays"
                assert key[:12] not in now
                shown = now
            assert shown == FILTER.filtered(text)


WORDS = (
    "risk",
    "disk",
    "task",
    "flask",
    "ask-me",
    "gh",
    "hf",
    "npm",
    "xox",
    "akia",
    "mfa",
    "sk",
    "pypi",
    "key",
)
DICTIONARY = Path("/usr/share/dict/words")
"""100,000 English words where a dictionary is installed, as Debian's wamerican."""
SAMPLES = (
    "https://example.com/blog/task-management-software-for-teams",
    "pip install flask-marshmallow-sqlalchemy",
    "risk-adjusted-return-on-capital",
    "sk-learn-style-estimators-and-their-pipelines",
    "the sk-internationalization package of Slovakia",
    "mypackage_with_a_long_name_x.config.some_very_long_function_name_here",
    "org.springframework.boot.autoconfigure.web.servlet.error.BasicErrorController",
    "npm_config_registry_and_another_long_variable_name",
    "hf_transfer and hf_hub_download_with_all_its_parameters",
    "xoxo-and-love-from-all-of-us-here",
    "A PEM file begins with -----BEGIN PRIVATE KEY----- and then comes base64 text, line by line.",
    "AKIABARA and akihabaraisagreatplace",
)


def harmless() -> Iterator[str]:
    """Give what people write with hyphens, dots and underscores: names, addresses, documentation."""
    yield from SAMPLES
    names = sorted(sys.stdlib_module_names)
    for name in names:
        yield f"https://docs.python.org/3/library/{name}.html#module-{name}"
        yield f"pip install {name}-task-flask-{name}"
    yield " ".join(names)
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "pyproject.toml"]):
        yield path.read_text(encoding="utf-8")
    prose = " ".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("bot/**/*.py"))).replace(
        "@", " "
    )
    if DICTIONARY.exists():
        english = DICTIONARY.read_text(encoding="utf-8").split()
        yield " ".join(english)
        yield from ("-".join(english[at : at + 6]) for at in range(0, len(english), 6))
    words = sorted({*WORDS, *(word.strip("`.,:;()'\"*") for word in prose.split())})
    chance = random.Random(7)
    for separator in "-_./":
        for _ in range(500):
            yield separator.join(chance.choices(words, k=chance.randint(2, 7)))


def test_words_addresses_package_names_and_documentation_stay_as_they_are() -> None:
    texts = list(harmless())
    assert sum(text.startswith("https://") for text in texts) > 200
    for text in texts:
        if "discord.gg" not in text and "@everyone" not in text and "invite/" not in text:
            assert FILTER.filtered(text) == text


def test_what_was_shown_of_a_text_stays_however_it_goes_on() -> None:
    for text in (*SAMPLES, "Tokens: " + TOKEN + " is one"):
        stream, shown = FilterStream(FILTER), ""
        for at in range(1, len(text) + 1):
            now = stream.feed(text[:at], final=at == len(text))
            assert now.startswith(shown)
            shown = now
        assert shown == FILTER.filtered(text)


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
@example("@EVERYONEAKIAIOSFODNN7EXAMPLE", [2, 9, 9, 9])
@example(f"{TOKEN}¼{TOKEN}", [])
@example(f"{TOKEN}¼{TOKEN}", [1, 30, 30, 9, 9, 9])
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
