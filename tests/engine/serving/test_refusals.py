"""What is wrong with a request is said in a sentence, with a status of 4xx, in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.serving import bodies
from engine.serving.keys import parse_keys
from engine.serving.service import ServingSettings
from tests.engine.serving.served import CHAT, COMPLETIONS, Client, ServedScripts, question, served
from tests.fakes import CONTROL_TAG
from tests.virtual_time import settle

DEEP = b'{"messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
MANY = b'{"messages":[' + b"[]," * 100_000 + b"[]]}"
KEY = "page:sk-0123456789abcdef"
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}


def messages(*given: Any) -> dict[str, Any]:
    return {"messages": list(given)}


MALFORMED: dict[str, tuple[str, Any, int, str]] = {
    # what is wrong: (path, body, status, words of the sentence)
    "nothing": (CHAT, b"", 400, "not valid JSON"),
    "no JSON": (CHAT, b"model=x&messages=y", 400, "not valid JSON"),
    "half a body": (CHAT, b'{"messages": [{"role"', 400, "not valid JSON"),
    "no UTF-8": (CHAT, b'{"messages": "\xff\xfe"}', 400, "UTF-8"),
    "no number of JSON": (CHAT, b'{"temperature": NaN}', 400, "NaN is no number"),
    "a number without an end": (CHAT, b'{"seed": ' + b"9" * 5000 + b"}", 400, "not valid JSON"),
    "nested too deeply": (CHAT, DEEP, 400, "too deeply"),
    "too many arrays": (CHAT, MANY, 413, "brackets"),
    "an array": (CHAT, [], 400, "must be a JSON object, not an array"),
    "a text": (CHAT, "hello", 400, "must be a JSON object, not a text"),
    "no messages": (CHAT, {}, 400, "messages is missing"),
    "messages that are null": (CHAT, {"messages": None}, 400, "messages is missing"),
    "messages that are a text": (CHAT, {"messages": "Hello?"}, 400, "messages must be an array"),
    "no message": (CHAT, messages(), 400, "messages is empty"),
    "a message that is a text": (CHAT, messages("Hello?"), 400, "messages[0] must be an object"),
    "no role": (CHAT, messages({"content": "a"}), 400, "messages[0].role is missing"),
    "an unknown role": (CHAT, messages({"role": "king", "content": "a"}), 400, "'king'"),
    "a role that is a number": (CHAT, messages({"role": 1, "content": "a"}), 400, "must be a text"),
    "a tool's message": (CHAT, messages({"role": "tool", "content": "a"}), 400, "takes none"),
    "no content": (CHAT, messages({"role": "user"}), 400, "messages[0].content is missing"),
    "content that is a number": (CHAT, messages({"role": "user", "content": 1}), 400, "not a number"),
    "a part that is a text": (CHAT, messages({"role": "user", "content": ["a"]}), 400, "content[0]"),
    "a part without text": (CHAT, messages({"role": "user", "content": [{"type": "text"}]}), 400, "missing"),
    "an image": (CHAT, messages({"role": "user", "content": [IMAGE]}), 400, "reads text only"),
    "an unknown part": (CHAT, messages({"role": "user", "content": [{"type": "x"}]}), 400, "must be text"),
    "control tags": (CHAT, question(f"a {CONTROL_TAG} b"), 400, "control tags"),
    "a question that is too long": (CHAT, question("a" * 5000), 400, "maximum context length is 4096"),
    "a dialog that is too long": (CHAT, question(*["a" * 400] * 21), 400, "maximum context length is 4096"),
    "another model": (CHAT, question(model="gpt-4o"), 404, "The one that answers is scripted"),
    "a model that is a number": (CHAT, question(model=4), 400, "model must be a text"),
    "a hot temperature": (CHAT, question(temperature=2.1), 400, "temperature must be between 0 and 2"),
    "a temperature in words": (CHAT, question(temperature="hot"), 400, "temperature must be a number"),
    "a negative top_p": (CHAT, question(top_p=-0.1), 400, "top_p must be between 0 and 1"),
    "a penalty": (CHAT, question(presence_penalty=3), 400, "presence_penalty must be between -2 and 2"),
    "our own parameter": (CHAT, question(repetition_penalty=0.1), 400, "between 0.5 and 2"),
    "half a candidate": (CHAT, question(top_k=1.5), 400, "top_k must be a whole number, not 1.5"),
    "no tokens": (CHAT, question(max_tokens=0), 400, "max_tokens must be at least 1"),
    "half a token": (CHAT, question(max_completion_tokens=1.5), 400, "must be a whole number, not 1.5"),
    "a seed in words": (CHAT, question(seed="lucky"), 400, "seed must be a whole number"),
    "two answers": (CHAT, question(n=2), 400, "n must be 1"),
    "a stream in words": (CHAT, question(stream="yes"), 400, "stream must be true or false"),
    "options of no stream": (CHAT, question(stream_options={}), 400, "only allowed when stream is true"),
    "unknown options": (CHAT, question(stream=True, stream_options={"x": 1}), 400, "stream_options.x"),
    "an empty stop": (CHAT, question(stop=""), 400, "stop must not have an empty text"),
    "a stop that is a number": (CHAT, question(stop=[1]), 400, "stop must be a text"),
    "too many stops": (CHAT, question(stop=["a"] * 65), 400, "at most 64"),
    "tools": (CHAT, question(tools=[{"type": "function"}]), 400, "tools is not supported"),
    "a tool that must be used": (CHAT, question(tool_choice="required"), 400, "tool_choice is not"),
    "a form": (CHAT, question(response_format={"type": "json_object"}), 400, "response_format is not"),
    "log-probabilities": (CHAT, question(logprobs=True), 400, "logprobs is not supported"),
    "biases": (CHAT, question(logit_bias={"1": 5}), 400, "logit_bias is not supported"),
    "an answer without an end": (CHAT, question(ignore_eos=True), 400, "ignore_eos is not supported"),
    "audio": (CHAT, question(modalities=["text", "audio"]), 400, "modalities is not supported"),
    "an effort": (CHAT, question(reasoning_effort="loud"), 400, "reasoning_effort must be one of none, min"),
    "a form of thoughts": (CHAT, question(reasoning_format="x"), 400, "reasoning_format must be one of"),
    "variables that are a text": (CHAT, question(chat_template_kwargs="x"), 400, "must be an object"),
    "an unknown variable": (CHAT, question(chat_template_kwargs={"x": 1}), 400, "chat_template_kwargs.x"),
    "thinking in words": (
        CHAT,
        question(chat_template_kwargs={"enable_thinking": "no"}),
        400,
        "chat_template_kwargs.enable_thinking must be true or false, not a text",
    ),
    "thinking that it cannot": (
        CHAT,
        question(chat_template_kwargs={"enable_thinking": True}),
        400,
        "chat_template_kwargs.enable_thinking must not be true: this model does not think",
    ),
    "thinking and not": (
        CHAT,
        question(chat_template_kwargs={"thinking": True}, reasoning_effort="none"),
        400,
        "reasoning_effort contradicts chat_template_kwargs.thinking",
    ),
    "variables of a completion": (
        COMPLETIONS,
        {"prompt": "a", "chat_template_kwargs": {}},
        400,
        "There is no parameter chat_template_kwargs",
    ),
    "a misspelt parameter": (CHAT, question(temprature=1), 400, "There is no parameter temprature"),
    "no prompt": (COMPLETIONS, {}, 400, "prompt is missing"),
    "an empty prompt": (COMPLETIONS, {"prompt": []}, 400, "prompt is missing"),
    "a prompt that is an object": (COMPLETIONS, {"prompt": {}}, 400, "not an object"),
    "two prompts": (COMPLETIONS, {"prompt": ["a", "b"]}, 400, "send a request for each"),
    "an unknown token": (COMPLETIONS, {"prompt": [1, 256]}, 400, "it has 256 tokens"),
    "a negative token": (COMPLETIONS, {"prompt": [-1]}, 400, "an id that this model does not know"),
    "a token that is true": (COMPLETIONS, {"prompt": [True]}, 400, "true or false is in it"),
    "too many tokens": (COMPLETIONS, {"prompt": [1] * 4096}, 400, "and your prompt has 4096"),
    "an echo": (COMPLETIONS, {"prompt": "a", "echo": True}, 400, "echo is not supported"),
    "the best of some": (COMPLETIONS, {"prompt": "a", "best_of": 3}, 400, "best_of is not supported"),
    "a suffix": (COMPLETIONS, {"prompt": "a", "suffix": "b"}, 400, "suffix is not supported"),
    "log-probabilities of tokens": (COMPLETIONS, {"prompt": "a", "logprobs": 0}, 400, "logprobs is not"),
    "nothing to compute": ("/engine/warm", {}, 400, "prompt is missing"),
    "no address": ("/v1/embeddings", {"input": "a"}, 404, "There is nothing at /v1/embeddings"),
    "another method": ("/v1/models", {}, 405, "POST is not possible at /v1/models"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_malformed_is_refused_in_a_sentence(what: str) -> None:
    path, body, status, words = MALFORMED[what]

    async def scene(client: Client, engine: ServedScripts) -> None:
        answer = await client.post(path, body)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
        assert answer.error.keys() == {"message", "type", "param", "code"}
        assert answer.error["type"] == "invalid_request_error"
        message = answer.error["message"]
        assert words in message
        assert message.endswith(".")
        assert len(message) < 300
        assert engine.generations == []

    served(scene)


def test_a_request_that_is_no_json_or_too_large_is_refused_before_it_is_read() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        body = json.dumps(question()).encode()
        assert (await client.post(CHAT, body, content_type="text/plain")).status == 415
        assert (await client.post(CHAT, body, content_encoding="gzip")).status == 415
        assert (await client.post(CHAT, body, content_length="9" * 30)).status == 413
        assert (await client.post(CHAT, b" " * (4 * 2**20 + 1))).status == 413
        assert (await client.post(CHAT, body, content_type="application/json; charset=utf-8")).status == 200

    served(scene)


def test_a_body_that_does_not_arrive_ends_the_request() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        call = client.begin(CHAT)
        call._incoming.get_nowait()  # nothing comes
        answer = await call.done()
        assert answer.status == 408
        assert "did not arrive" in answer.error["message"]

    served(scene)


def test_all_bodies_together_stay_within_what_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        monkeypatch.setattr(bodies, "MAX_BODIES_BYTES", 1000)
        slow = client.begin(CHAT)
        slow._incoming.get_nowait()
        slow._incoming.put_nowait({"type": "http.request", "body": b" " * 800, "more_body": True})
        await settle()
        refused = await client.chat("a" * 300)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        slow.leave()
        await slow.task
        assert (await client.chat("a" * 300)).status == 200
        assert client.app.service.num_body_bytes == 0

    served(scene)


def test_a_page_of_another_host_is_refused_where_there_are_no_keys() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        assert (await client.post(CHAT, question(), origin="https://evil.example")).status == 403
        assert (await client.post(CHAT, question(), origin="null")).status == 403
        assert (await client.post(CHAT, question(), origin="http://localhost:3000")).status == 200

    served(scene)


LOCAL, ELSEWHERE = "http://localhost:3000", "https://chat.example"


@pytest.mark.parametrize(
    ("keys", "origin", "may_ask"), [("", LOCAL, True), ("", ELSEWHERE, False), (KEY, ELSEWHERE, True)]
)
def test_a_page_may_ask_from_this_machine_or_with_a_key(keys: str, origin: str, may_ask: bool) -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        wants = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
        before = await client.begin(CHAT, None, "OPTIONS", origin=origin, **wants).done()
        assert (before.status == 200) is may_ask
        key = {"authorization": f"Bearer {keys.partition(':')[2]}"}
        answer = await client.post(CHAT, question(stream=True), origin=origin, **key)
        assert (answer.status, answer.is_done) == ((200, True) if may_ask else (403, False))
        assert ("access-control-allow-origin" in answer.headers) is may_ask
        assert (await client.get("/metrics")).status == 200
        assert (await client.get("/metrics", origin=ELSEWHERE)).status == (401 if keys else 403)

    served(scene, settings=ServingSettings(keys=parse_keys(keys) if keys else ()))
