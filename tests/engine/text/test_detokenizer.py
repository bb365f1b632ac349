"""What a stream gives out is always right, complete in the end, and never shows a stop string."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.text.detokenizer import StreamDecoder

ALL_BYTES = [bytes([byte]) for byte in range(256)]
TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aäb🙂👩‍👧你ﬁ\n\u0301")))
PIECES = st.lists(st.one_of(st.binary(max_size=4), TEXTS.map(lambda text: text.encode()[:3])), max_size=40)
LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def stream(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], StreamDecoder]:
    """Return what each token of `pieces` brought, what the end brought, and the decoder."""
    decoder = StreamDecoder(pieces, stop)
    emitted = [decoder.push(token) for token in range(len(pieces))]
    return [*emitted, decoder.finish()], decoder


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut `data` into pieces after each of `cuts`."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def first_stop(text: str, stop: list[str]) -> int:
    """Return where the text ends that comes before any stop string."""
    return min((text.index(end) for end in stop if end in text), default=len(text))


@given(PIECES)
@example([b"\xf0", b"\x9f", b"\x99", b"\x82"])
@example([b"\xf0\x9f", b"a", b"\xff"])
@example([b"\xed\xa0", b"\x80"])
def test_what_was_given_out_is_always_a_prefix_and_in_the_end_everything(pieces: list[bytes]) -> None:
    whole = b"".join(pieces).decode("utf-8", errors="replace")
    emitted, _ = stream(pieces)
    for given_out in itertools.accumulate(emitted):
        assert whole.startswith(given_out)
    assert "".join(emitted) == whole


@given(TEXTS, st.lists(st.integers(0, 200)))
def test_a_character_comes_with_its_last_byte_and_never_in_part(text: str, cuts: list[int]) -> None:
    pieces = split(text.encode(), cuts)
    emitted, _ = stream(pieces)
    for index in range(len(pieces)):
        complete = b"".join(pieces[: index + 1]).decode("utf-8", errors="ignore")
        assert "".join(emitted[: index + 1]) == complete


@given(LETTERS, STOPS, st.lists(st.integers(0, 30)))
@example("abab", ["abac", "b"], [])
@example("aab", ["ab"], [1, 2])
@example("abcabd", ["abcabc", "bd"], [1, 2, 3, 4, 5])
def test_stop_strings_end_the_text_before_them_however_tokens_fall(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    pieces = split(text.encode(), cuts)
    emitted, decoder = stream(pieces, tuple(stop))
    shown = "".join(emitted)
    assert text.startswith(shown)
    assert not any(end in shown for end in stop)
    assert decoder.stopped == any(end in text for end in stop)
    if decoder.stopped:
        assert any(text.startswith(end, len(shown)) for end in stop)
        assert len(shown) >= first_stop(text, stop)
    else:
        assert shown == text


@given(LETTERS, st.text("abc", min_size=1, max_size=5), st.lists(st.integers(0, 30)))
def test_with_one_stop_string_the_text_ends_at_its_first_place(text: str, stop: str, cuts: list[int]) -> None:
    emitted, _ = stream(split(text.encode(), cuts), (stop,))
    assert "".join(emitted) == text[: first_stop(text, [stop])]


@given(LETTERS, STOPS)
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stop: list[str]) -> None:
    decoder = StreamDecoder(ALL_BYTES, stop)
    shown = ""
    for end, byte in enumerate(text.encode(), start=1):
        shown += decoder.push(byte)
        if decoder.stopped:
            return
        held = text[len(shown) : end]
        assert not held or any(string.startswith(held) for string in stop)


def test_nothing_follows_a_stop_string() -> None:
    decoder = StreamDecoder([b"one EN", b"D two", b" three"], ["END"])
    assert [decoder.push(0), decoder.push(1), decoder.push(2), decoder.finish()] == ["one ", "", "", ""]
    assert decoder.stopped


def test_half_a_character_at_the_end_becomes_a_replacement_after_what_was_held() -> None:
    emitted, _ = stream([b"abEN", b"\xf0\x9f"], ("END",))
    assert "".join(emitted) == "abEN\ufffd"


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([b" Hi", b" you"], "Hi you"),
        ([b" ", b" Hi"], " Hi"),
        ([b"Hi", b" you"], "Hi you"),
        ([b"", b" Hi"], "Hi"),
        ([b"\xf0", b"\x9f\x99\x82", b" "], "🙂 "),
        ([b" a", b" Hi"], "a Hi"),
    ],
)
def test_only_the_space_that_opens_the_answer_is_dropped(pieces: list[bytes], text: str) -> None:
    decoder = StreamDecoder(pieces, opening_space_ids=range(4))
    shown = "".join(decoder.push(token) for token in range(len(pieces)))
    assert shown + decoder.finish() == text


def test_a_space_that_is_a_byte_of_its_own_is_text() -> None:
    decoder = StreamDecoder([b" ", b" Hi"], opening_space_ids={1})
    assert decoder.push(0) + decoder.push(1) == "  Hi"
