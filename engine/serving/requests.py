"""What a client asks for: OpenAI's request bodies as values, ours beside them. Pure but for the tokenizer.

What OpenAI has and this engine has not is refused by name where an answer would be another one without it,
and accepted where it would not. What nobody knows is refused too: it may be misspelt.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from engine.errors import EngineError
from engine.serving.dialogs import read_messages
from engine.serving.errors import ApiError, refusal, too_long
from engine.serving.fields import Fields, kind_of, parse_object
from engine.serving.thinking import read_thinking
from engine.text.text_files import TextFiles
from engine.types import RANGES, Prompt, Reasoning, SamplingParams, TextEngine

MAX_USER_CHARACTERS = 256
"""A longer name of somebody goes by its hash: names are remembered."""
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1000
COMPLETION_TOKENS = 16
"""Of a completion that says nothing about its length, as OpenAI has it."""
PLAIN = SamplingParams(repetition_penalty=1.0)
"""How answers are chosen where neither the request nor the model says anything."""
_HARMLESS = frozenset(
    {
        *("metadata", "moderation", "parallel_tool_calls", "prediction", "prompt_cache_key"),
        *("prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "safety_identifier"),
        *("service_tier", "store", "user", "verbosity"),
        *("cache_prompt", "keep_alive", "priority", "request_id", "return_token_ids", "timings_per_token"),
    }
)
"""What changes no text: names, hints, what OpenAI does besides, and what clients of other servers ask for."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "min_tokens": (0,),
    "skip_special_tokens": (True,),
}
"""What is accepted with these values alone, which say what is done anyway."""
_UNLESS_EMPTY = ("audio", "function_call", "functions", "logit_bias", "suffix", "tools", "web_search_options")
_OUR_NUMBERS = ("top_k", "min_p", "repetition_penalty")


class ServedEngine(TextEngine, Protocol):
    """An engine with what a server needs besides."""

    @property
    def vocab_size(self) -> int:
        """Return how many tokens the model knows."""

    @property
    def kv_page(self) -> int:
        """Return of how many tokens `tokens_needed` counts whole pages."""

    def encode(self, text: str) -> Prompt:
        """Return the ids of a text that is to be gone on with, without a chat format. Call it in a thread."""

    def text_files(self) -> TextFiles:
        """Return what a client needs to make prompts itself."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer that somebody asks for. `user`: whom it is for, as far as the client says.

    reasoning: the marks of what is thought, where that is to be told apart from what is said. mark: what
    stands before the answer, where its prompt has written that already.
    """

    prompt: Prompt
    params: SamplingParams
    is_chat: bool
    is_stream: bool = False
    with_usage: bool = False
    user: str = ""
    reasoning: Reasoning | None = None
    mark: str = ""


def read_chat(body: bytes, engine: ServedEngine) -> Asked:
    """Read the body of `/v1/chat/completions`. Takes a while: call it in a thread. Raises `ApiError`."""
    fields = Fields(parse_object(body))
    _check_model(fields, engine)
    dialog = read_messages(fields, engine.info.default_system_prompt)
    most = _max_tokens(fields, engine)
    thinking, keeps_marks = read_thinking(fields, engine.info)
    asked = _read_rest(fields, engine, most, is_chat=True)
    room = engine.info.context_length - 1
    try:
        prompt = engine.fit_prompt(
            dialog.messages, room, answer_so_far=dialog.answer_so_far, thinking=thinking
        )
    except EngineError as error:
        raise refusal(error) from error
    if prompt.num_dropped:
        raise too_long(None, engine.info.context_length, "messages")
    # An answer that is gone on with stands behind what was thought.
    reasoning = None if prompt.is_continued else engine.info.reasoning_when(thinking)
    if keeps_marks:
        mark = reasoning.opening if reasoning is not None and reasoning.is_open else ""
        return dataclasses.replace(asked, prompt=prompt, mark=mark)
    return dataclasses.replace(asked, prompt=prompt, reasoning=reasoning)


def read_completion(body: bytes, engine: ServedEngine) -> Asked:
    """Read the body of `/v1/completions`. Takes a while: call it in a thread. Raises `ApiError`."""
    fields = Fields(parse_object(body))
    _check_model(fields, engine)
    prompt = read_prompt(fields, engine)
    if fields.flag("echo"):
        _refuse_parameter(fields, "echo")
    if (fields.whole("best_of") or 1) != 1:
        _refuse_parameter(fields, "best_of")
    most = _max_tokens(fields, engine) if fields.value("max_tokens") is not None else COMPLETION_TOKENS
    return dataclasses.replace(_read_rest(fields, engine, most, is_chat=False), prompt=prompt)


def read_warm(body: bytes, engine: ServedEngine) -> Prompt:
    """Read the body of `/engine/warm`. Raises `ApiError`."""
    fields = Fields(parse_object(body))
    prompt = read_prompt(fields, engine)
    fields.refuse_others()
    return prompt


def read_prompt(fields: Fields, engine: ServedEngine) -> Prompt:
    """Return what is to be gone on with: a text, or ids, which are taken as they are.

    `is_continued` says of ids whether they end inside of an answer, whose first space then counts.
    """
    given = fields.value("prompt")
    is_continued = fields.flag("is_continued")
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]
    if isinstance(given, str):
        prompt = engine.encode(given)
    elif isinstance(given, list) and given:
        prompt = Prompt(_ids(fields, given, engine.vocab_size), is_continued=is_continued)
    elif given is None or given == []:
        fields.refuse("prompt", "is missing: it must be a text, or the ids of tokens.")
    else:
        fields.refuse("prompt", f"must be a text, or an array of the ids of tokens, not {kind_of(given)}.")
    if not 0 < len(prompt.ids) < engine.info.context_length:
        raise too_long(len(prompt.ids), engine.info.context_length, "prompt")
    return prompt


def _ids(fields: Fields, given: list[Any], vocab_size: int) -> tuple[int, ...]:
    if all(isinstance(one, str | list) for one in given):
        fields.refuse("prompt", "must be one prompt: send a request for each.", "unsupported_value")
    for token in given:
        if type(token) is not int:
            fields.refuse("prompt", f"must be an array of whole numbers; {kind_of(token)} is in it.")
        if not 0 <= token < vocab_size:
            fields.refuse("prompt", f"has an id that this model does not know: it has {vocab_size} tokens.")
    return tuple(given)


def _check_model(fields: Fields, engine: ServedEngine) -> None:
    name = fields.text("model")
    if name is not None and name != engine.info.name:
        raise ApiError(
            404,
            f"There is no such model here. The one that answers is {engine.info.name}.",
            code="model_not_found",
            param="model",
        )


def _read_rest(fields: Fields, engine: ServedEngine, max_new_tokens: int, *, is_chat: bool) -> Asked:
    """Read what both ways of asking have."""
    for name in _UNLESS_EMPTY:
        if fields.value(name) and not (name == "tools" and fields.value("tool_choice") == "none"):
            _refuse_parameter(fields, name)
    for name, harmless in _ONLY.items():
        if (value := fields.value(name)) is not None and value not in harmless:
            _refuse_parameter(fields, name)
    if fields.object("response_format").text("type", "text") != "text":
        _refuse_parameter(fields, "response_format")
    if (fields.whole("n", 1) or 1) != 1:
        fields.refuse("n", "must be 1: this server gives one answer to a request.", "unsupported_value")
    if is_chat:
        if fields.flag("logprobs"):
            _refuse_parameter(fields, "logprobs")
    elif fields.whole("logprobs") is not None:
        _refuse_parameter(fields, "logprobs")
    if fields.whole("top_logprobs"):
        _refuse_parameter(fields, "top_logprobs")
    is_stream = fields.flag("stream")
    if fields.value("stream_options") is not None and not is_stream:
        fields.refuse("stream_options", "is only allowed when stream is true.")
    options = fields.object("stream_options")
    with_usage = options.flag("include_usage")
    options.accept(("include_obfuscation",))
    options.refuse_others()
    params = _sampling(fields, engine, max_new_tokens)
    user = next((value for name in ("prompt_cache_key", "user") if (value := fields.text(name))), "")
    if len(user) > MAX_USER_CHARACTERS:
        user = hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()
    fields.accept(_HARMLESS)
    fields.refuse_others()
    return Asked(Prompt(()), params, is_chat, is_stream, with_usage, user)


def _refuse_parameter(fields: Fields, name: str) -> NoReturn:
    fields.refuse(name, "is not supported by this server.", "unsupported_parameter")


def _max_tokens(fields: Fields, engine: ServedEngine) -> int:
    """Return the longest answer that is asked for, without more than there ever is room for."""
    found = [fields.whole(name, 1) for name in ("max_completion_tokens", "max_tokens")]
    most = min(engine.info.context_length, int(RANGES["max_new_tokens"].high))
    return min(next((value for value in found if value is not None), most), most)


def _sampling(fields: Fields, engine: ServedEngine, max_new_tokens: int) -> SamplingParams:
    """Return how tokens are chosen: as asked, or else as the model's authors advise, or else plainly."""
    chosen: dict[str, Any] = dict(engine.info.sampling)
    reads: dict[str, Callable[[str], float | None]] = {
        "temperature": lambda name: fields.number(name, 0.0, 2.0),
        "top_p": lambda name: _at_least_some(fields.number(name, 0.0, 1.0)),
        "frequency_penalty": lambda name: fields.number(name, -2.0, 2.0),
        "presence_penalty": lambda name: fields.number(name, -2.0, 2.0),
    }
    for name in _OUR_NUMBERS:
        allowed = RANGES[name]
        reads[name] = lambda name, allowed=allowed: fields.number(name, allowed.low, allowed.high)  # type: ignore[misc]
    fields.whole("top_k")
    for name, read in reads.items():
        if (value := read(name)) is not None:
            chosen[name] = int(value) if name == "top_k" else value
    seed = fields.whole("seed")
    return dataclasses.replace(
        PLAIN,
        **chosen,
        max_new_tokens=max_new_tokens,
        seed=None if seed is None else seed % 2**63,
        stop=_stops(fields),
    )


def _at_least_some(top_p: float | None) -> float | None:
    return None if top_p is None else max(top_p, RANGES["top_p"].low)


def _stops(fields: Fields) -> tuple[str, ...]:
    given = fields.value("stop")
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        fields.refuse("stop", "must be a text, or an array of texts.")
    if len(stops) > MAX_STOPS or any(len(one) > MAX_STOP_CHARACTERS for one in stops):
        fields.refuse("stop", f"must have at most {MAX_STOPS} texts of {MAX_STOP_CHARACTERS} characters.")
    if not all(stops):
        fields.refuse("stop", "must not have an empty text.")
    return tuple(stops)
