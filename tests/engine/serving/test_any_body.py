"""Whatever a body is, it is understood or refused in a sentence: never a fault of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.serving.errors import ApiError
from engine.serving.requests import ServedEngine, read_chat, read_completion, read_warm
from tests.engine.serving.served import ServedScripts

NAMES = (
    *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "seed", "stop"),
    *("n", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format", "logit_bias", "user"),
    *("echo", "best_of", "suffix", "modalities", "is_continued", "metadata", "prompt_cache_key"),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(("user", "assistant", "system", "text", "none", "\ud800", "")),
)
KEYS = st.sampled_from(("role", "content", "type", "text", "include_usage", "tool_calls", "refusal"))
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(("user", "assistant", "system")), "content": VALUES}),
    max_size=4,
)
FIELDS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4)
ENGINE = ServedScripts()


def refused(read: Callable[[bytes, ServedEngine], object], body: bytes) -> ApiError | None:
    """Return how a body is refused, None where it is understood."""
    try:
        read(body, ENGINE)
    except ApiError as error:
        return error
    return None


@settings(max_examples=40)
@given(FIELDS, st.one_of(VALUES, MESSAGES))
def test_any_object_is_understood_or_refused(fields: dict[str, Any], asked: Any) -> None:
    body = json.dumps(fields | {"messages": asked, "prompt": fields.get("prompt", asked)}).encode()
    for read in (read_chat, read_completion, read_warm):
        error = refused(read, body)
        if error is not None:
            assert error.status in (400, 404)
            assert error.message.endswith(".")
            assert json.dumps(error.body)


@settings(max_examples=40)
@given(st.binary(max_size=40))
def test_any_bytes_are_understood_or_refused(body: bytes) -> None:
    error = refused(read_chat, body)
    assert error is not None
    assert error.status == 400
