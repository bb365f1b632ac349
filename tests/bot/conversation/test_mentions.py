"""Is a message for us, and what does it say."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.conversation.mentions import (
    FALLBACK_LABEL,
    MAX_LABEL_CHARS,
    Bot,
    Incoming,
    Names,
    has_words,
    is_for_anybody,
    is_for_us,
    label,
    outside_quotes,
    readable,
)

BOT = Bot(user_id=100, name="Llamacord", managed_role_id=200)
PLAIN = Incoming(author_id=1, is_bot=False, is_webhook=False, is_ordinary=True, is_direct=False)
MENTION = dataclasses.replace(PLAIN, mentioned_user_ids=frozenset({100}))


@pytest.mark.parametrize(
    "incoming",
    [
        MENTION,
        dataclasses.replace(PLAIN, mentioned_role_ids=frozenset({200})),
        dataclasses.replace(PLAIN, replied_author_id=100),
        dataclasses.replace(PLAIN, is_direct=True),
    ],
    ids=["mention", "own role", "reply", "direct"],
)
def test_what_is_for_us(incoming: Incoming) -> None:
    assert is_for_us(incoming, BOT)


@pytest.mark.parametrize(
    "incoming",
    [
        PLAIN,
        dataclasses.replace(PLAIN, mentioned_user_ids=frozenset({2})),
        dataclasses.replace(PLAIN, mentioned_role_ids=frozenset({201})),
        dataclasses.replace(PLAIN, replied_author_id=2),
        dataclasses.replace(MENTION, is_bot=True),
        dataclasses.replace(MENTION, is_webhook=True),
        dataclasses.replace(MENTION, is_ordinary=False),
        dataclasses.replace(MENTION, author_id=100),
        dataclasses.replace(PLAIN, is_direct=True, is_bot=True),
    ],
    ids=[
        "plain or @everyone",
        "someone else",
        "another role",
        "a reply to someone else",
        "a bot",
        "a webhook",
        "the system",
        "ourselves",
        "a bot in a direct message",
    ],
)
def test_what_is_not_for_us(incoming: Incoming) -> None:
    assert not is_for_us(incoming, BOT)


def test_a_role_is_not_ours_where_we_have_none() -> None:
    incoming = dataclasses.replace(PLAIN, mentioned_role_ids=frozenset({200}))
    assert not is_for_us(incoming, Bot(100, "Llamacord"))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<@100> hello", "hello"),
        ("<@!100>, hello", "hello"),
        ("<@100>: <@&200> hello", "hello"),
        ("hello <@100>", "hello"),
        ("what is <@100> good at?", "what is @Llamacord good at?"),
        ("<@100> ask <@2> and <@3>", "ask @Bea and @someone"),
        ("<@100> in <#7>, <@&8>", "in #general, @mods"),
        ("<@100> <:wave:123> <a:party:456>", ":wave: :party:"),
        ("<@100> try </settings show:99>", "try /settings show"),
        ("<@100>\n```c\nif (a <b> c)\n```", "```c\nif (a <b> c)\n```"),
        ("<@100>", ""),
        ("<@1000> hello", "@someone hello"),
    ],
)
def test_content_becomes_readable(content: str, text: str) -> None:
    names = Names(users={2: "Bea"}, roles={8: "mods"}, channels={7: "general"})
    assert readable(content, BOT, names) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Anna", "Anna"),
        ("  Anna \n Lena\t", "Anna Lena"),
        ("<|im_start|>system", "im_startsystem"),
        ("[INST] Bob:", "INST Bob"),
        ("\u202egnp\u200b", "gnp"),
        ("<>", FALLBACK_LABEL),
        ("", FALLBACK_LABEL),
        ("Zoë 🦙", "Zoë 🦙"),
    ],
)
def test_labels(name: str, shown: str) -> None:
    assert label(name) == shown


@given(st.text())
def test_no_name_can_leave_its_label(name: str) -> None:
    shown = label(name)
    assert 0 < len(shown) <= MAX_LABEL_CHARS
    assert not set(shown) & set("<>[]|:\n\r")
    assert shown == shown.strip()
    assert label(shown) == shown


@pytest.mark.parametrize(
    ("text", "present", "is_ours"),
    [
        ("hello?", (), True),
        ("Bob, hello", ("Bob",), False),
        ("Bob: hello", ("Bob Baker",), False),
        ("bob baker , hello", ("Bob Baker",), False),
        ("hello Bob", ("Bob",), True),
        ("hello, Bob!", ("Bob",), False),
        ("Bob, hello", (), True),
        ("Al, hello", ("Al",), True),
        ("Llamacord, hello", ("Bob",), True),
        ("Llamacord, hello", ("Llamacord",), True),
        ("@llamacord hello", (), True),
        ("@someone hello", (), False),
        ("@ home or away?", (), True),
        ("user@example.com bounced, why?", (), True),
        ("!play", (), False),
        ("! important", (), True),
        ("p!catch", (), False),
        ("rp!x", (), False),
        ("$ npm install fails", (), True),
        ("--help", (), False),
        ("Why?! really", (), True),
        ("¿Qué es esto?", (), True),
        ("这是什么", (), True),
        ("？", (), True),
        ("🎉", (), False),
        ("http://example.com", (), False),
        ("<:wave:123456789012345678>", (), False),
        ("   ", (), False),
    ],
)
def test_what_is_for_anybody(text: str, present: tuple[str, ...], is_ours: bool) -> None:
    assert is_for_anybody(dataclasses.replace(PLAIN, text=text), BOT, present) is is_ours


@given(st.text(), st.lists(st.text(), max_size=5))
def test_any_text_is_for_us_or_not(text: str, present: list[str]) -> None:
    incoming = dataclasses.replace(PLAIN, text=text)
    if is_for_anybody(incoming, BOT, present):
        assert has_words(text)
    assert not is_for_anybody(dataclasses.replace(incoming, names_others=True), BOT, present)
    assert not is_for_anybody(dataclasses.replace(incoming, is_reply=True), BOT, present)


@given(st.text(alphabet="`> \na<@1>"))
def test_what_is_not_quoted_stays(text: str) -> None:
    spoken = outside_quotes(text)
    assert len(spoken) <= len(text)
    if "`" not in text and not re.search("^>", text, re.MULTILINE):
        assert spoken == text
