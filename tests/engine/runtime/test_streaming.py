"""Streams of real tokenizers: what was given out is a prefix of the whole text, and in the end all of it.

Random ids are full of bytes that are no text and of characters in pieces; that is what models write when they
are hot, and what every emoji is made of.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.common import default_model
from engine.describing.manifest import load_manifest
from engine.text.detokenizer import StreamDecoder
from engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine.fakes import tiny_bpe
from tests.engine.tiny_sentencepiece import NEEDS_LLAMA2, llama2_tokenizer, tiny_sentencepiece

TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"),
        st.sampled_from("🙂👩‍👧🇩🇪你好\u0301\n "),
    )
)
Make = Callable[[], Tokenizer]
FEW = settings(max_examples=150, deadline=None)


@functools.cache
def default_tokenizer() -> Tokenizer:
    folder = default_model()
    return load_tokenizer(folder, load_manifest(folder).tokenizer)


TOKENIZERS: list[object] = [
    pytest.param(tiny_bpe, id="byte-level"),
    pytest.param(tiny_sentencepiece, id="sentencepiece"),
    pytest.param(llama2_tokenizer, id="llama2", marks=NEEDS_LLAMA2),
    pytest.param(default_tokenizer, id="default", marks=pytest.mark.model),
]


def stream(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return what each token brought, and what the end brought."""
    decoder = StreamDecoder(tokenizer.token_bytes, opening_space_ids=tokenizer.opening_space_ids)
    return [*map(decoder.push, ids), decoder.finish()]


def whole(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of all tokens at once."""
    data = b"".join(tokenizer.token_bytes[token] for token in ids)
    first = next((token for token in ids if tokenizer.token_bytes[token]), None)
    return data[first in tokenizer.opening_space_ids :].decode("utf-8", errors="replace")


@functools.cache
def id_of_byte(make: Make) -> dict[int, int]:
    """Return the tokens of single bytes. The default model's vocabulary lacks a few rare ones."""
    tokenizer = make()
    single = {token: spelled[0] for token, spelled in enumerate(tokenizer.token_bytes) if len(spelled) == 1}
    return {byte: token for token, byte in single.items() if token not in tokenizer.opening_space_ids}


def byte_ids(make: Make, data: bytes) -> list[int]:
    """Return ids of single bytes, as a tokenizer falls back to for rare characters."""
    of_byte = id_of_byte(make)
    return [of_byte[byte] for byte in data if byte in of_byte]


def writable(make: Make, text: str) -> str:
    """Return the characters of `text` that the vocabulary has bytes for."""
    of_byte = id_of_byte(make)
    return "".join(character for character in text if of_byte.keys() >= set(character.encode()))


@pytest.mark.parametrize("make", TOKENIZERS)
@FEW
@given(data=st.data())
def test_what_was_given_out_is_always_a_prefix_and_in_the_end_everything(
    make: Make, data: st.DataObject
) -> None:
    tokenizer = make()
    tokens = st.integers(0, tokenizer.vocab_size - 1).map(lambda token: [token])
    raw = st.binary(max_size=5).map(lambda part: byte_ids(make, part))
    text = TEXTS.map(tokenizer.encode)
    ids = list(itertools.chain(*data.draw(st.lists(st.one_of(tokens, raw, text), max_size=12))))
    ids = ids[: data.draw(st.integers(0, len(ids)))]  # the limit may fall anywhere
    complete = whole(tokenizer, ids)
    emitted = stream(tokenizer, ids)
    for given_out in itertools.accumulate(emitted):
        assert complete.startswith(given_out)
    assert "".join(emitted) == complete


@pytest.mark.parametrize("make", TOKENIZERS)
@FEW
@given(text=TEXTS)
def test_the_tokens_of_a_text_stream_as_that_text(make: Make, text: str) -> None:
    tokenizer = make()
    text = writable(make, text)
    assert "".join(stream(tokenizer, tokenizer.encode(text))) == text


@pytest.mark.parametrize("make", TOKENIZERS)
@FEW
@given(text=TEXTS)
def test_characters_in_single_bytes_come_whole(make: Make, text: str) -> None:
    tokenizer = make()
    text = writable(make, text)
    emitted = stream(tokenizer, byte_ids(make, text.encode()))
    assert "".join(emitted) == text
    assert all(len(piece) <= 1 for piece in emitted)
