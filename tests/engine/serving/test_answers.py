"""Answers in OpenAI's form, whole and in pieces, and what of a request reaches the engine."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from engine.types import ChatMessage, FinishReason, Generation, ModelInfo
from tests.engine.serving.served import CHAT, COMPLETIONS, Client, ServedScripts, served, text_files
from tests.fakes import Script, ScriptedGeneration


def test_a_whole_answer() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        answer = await client.chat("Hello?", model="scripted", max_tokens=9)
        assert answer.status == 200
        found = answer.json
        assert found["object"] == "chat.completion"
        assert found["model"] == "scripted"
        assert found["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
        (choice,) = found["choices"]
        assert choice["message"] == {"role": "assistant", "content": "Hello there.", "refusal": None}
        assert choice["finish_reason"] == "stop"
        num_prompt = len("system\nYou are a test.\nuser\nHello?")
        assert found["usage"]["prompt_tokens"] == num_prompt
        assert found["usage"]["completion_tokens"] == 3
        assert found["usage"]["total_tokens"] == num_prompt + 3
        assert found["llamacord"]["finish_reason"] == "stop"

    served(scene)


@pytest.mark.parametrize("with_usage", [False, True])
def test_an_answer_in_pieces(with_usage: bool) -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        options = {"stream_options": {"include_usage": True}} if with_usage else {}
        answer = await client.chat(stream=True, **options)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.is_done
        first, *_, last = (event for event in answer.events if event["choices"])
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
        assert last["llamacord"]["num_new_tokens"] == 3
        assert {event["object"] for event in answer.events} == {"chat.completion.chunk"}
        assert len({event["id"] for event in answer.events}) == 1
        assert answer.text == "Hello there."
        usages = [event["usage"] for event in answer.events if event.get("usage")]
        assert [usage["completion_tokens"] for usage in usages] == [3] * with_usage
        assert answer.events[-1]["choices"] == ([] if with_usage else [last["choices"][0]])

    served(scene)


def test_pieces_that_come_close_together_are_sent_together_and_nothing_is_lost() -> None:
    words = [f"{number} " for number in range(40)]

    async def scene(client: Client, _engine: ServedScripts) -> None:
        answer = await client.chat(stream=True)
        assert answer.text == "".join(words)

    served(scene, ServedScripts([Script(words, delay_s=0.001)]))


def test_the_end_is_not_kept_waiting_and_what_waits_comes_soon() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        began_s = asyncio.get_running_loop().time()
        call = client.begin_chat(stream=True)
        await asyncio.sleep(0.03)
        assert call.answer.text == "one"
        await asyncio.sleep(0.04)
        assert call.answer.text == "onetwo", "within 50 ms, though nothing follows"
        assert (await call.done()).text == "onetwothree"
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(0.51, abs=0.005)

    class Uneven(ServedScripts):
        pauses = (0.01, 0.01, 0.48, 0.01)

        def generate(self, *given: Any, **named: Any) -> Generation:
            generation = super().generate(*given, **named)
            assert isinstance(generation, ScriptedGeneration)
            left = iter(self.pauses)

            async def pause() -> None:
                await asyncio.sleep(next(left))

            generation._pause = pause  # type: ignore[method-assign]
            return generation

    served(scene, Uneven([Script(("one", "two", "three"))]))


def test_what_json_and_events_give_a_meaning_to_comes_through() -> None:
    text = 'a"b\\c\n\ndata: [DONE]\n\n\x00\u2028ü😀'

    async def scene(client: Client, _engine: ServedScripts) -> None:
        assert (await client.chat(stream=True)).text == text
        assert (await client.chat()).json["choices"][0]["message"]["content"] == text

    served(scene, ServedScripts([Script([text])]))


def test_a_completion_of_a_text_and_of_ids() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        for prompt in ("Once", ["Once"], list(b"Once"), [list(b"Once")]):
            answer = await client.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 2})
            assert answer.json["object"] == "text_completion"
            assert answer.json["choices"][0]["text"] == "Hello there"
            assert answer.json["choices"][0]["finish_reason"] == "length"
        assert [one._prompt.ids for one in engine.generations] == [tuple(b"Once")] * 4
        streamed = await client.post(COMPLETIONS, {"prompt": "Once", "stream": True})
        assert streamed.text == "Hello there."
        assert streamed.is_done
        assert engine.params[-1].max_new_tokens == 16
        for is_continued in (False, True):
            body = {"prompt": list(b"Once"), "is_continued": is_continued}
            await client.post(COMPLETIONS, body)
            assert engine.generations[-1]._prompt.is_continued is is_continued

    served(scene)


def test_a_stop_text_and_the_reason_of_the_end() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        answer = await client.chat(stop=[" there"])
        assert answer.json["choices"][0]["finish_reason"] == "stop"
        assert answer.json["llamacord"]["finish_reason"] == "stop_text"
        answer = await client.chat(max_tokens=1)
        assert answer.json["choices"][0]["finish_reason"] == "length"

    served(scene)


def test_what_is_asked_for_reaches_the_engine() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        await client.chat(
            temperature=0,
            top_p=0,
            frequency_penalty=1,
            presence_penalty=-1,
            seed=-1,
            top_k=7,
            min_p=0.1,
            repetition_penalty=1.2,
            max_completion_tokens=11,
            stop="x",
        )
        params = engine.params[-1]
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.0, 0.01, 7, 0.1)
        assert (params.frequency_penalty, params.presence_penalty) == (1.0, -1.0)
        assert (params.repetition_penalty, params.max_new_tokens) == (1.2, 11)
        assert (params.seed, params.stop) == (2**63 - 1, ("x",))

    served(scene)


def test_what_is_not_asked_for_is_as_the_model_advises_or_plain() -> None:
    info = ModelInfo("m", "fp32", "cpu", "bytes", 4096, "", sampling={"temperature": 0.2, "top_k": 5})

    async def scene(client: Client, engine: ServedScripts) -> None:
        await client.chat(top_k=None)
        assert (engine.params[-1].temperature, engine.params[-1].top_k) == (0.2, 5)
        assert engine.params[-1].repetition_penalty == 1.0
        assert engine.params[-1].max_new_tokens == 4096
        assert engine.dialogs[-1] == (ChatMessage("user", "Hello?"),)

    served(scene, ServedScripts(info=info))


HARMLESS: dict[str, Any] = {
    "user": "u-1",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "reasoning_effort": "low",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "verbosity": "low",
    "n": 1,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "logprobs": False,
    "top_logprobs": 0,
    "functions": None,
    "return_token_ids": True,
    "cache_prompt": False,
    "ignore_eos": False,
    "min_tokens": 0,
}


def test_what_changes_nothing_is_accepted() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        for name, value in HARMLESS.items():
            assert (await client.chat(**{name: value})).status == 200, name
        assert (await client.chat(**HARMLESS)).status == 200

    served(scene)


DIALOGS: list[tuple[list[tuple[str, Any]], list[tuple[str, str]]]] = [
    ([("system", "Be."), ("user", "a")], [("system", "Be."), ("user", "a")]),
    (
        [("developer", "Be."), ("system", "Brief."), ("user", "a")],
        [("system", "Be.\n\nBrief."), ("user", "a")],
    ),
    ([("system", ""), ("user", "a")], [("user", "a")]),
    ([("user", "a"), ("user", "b")], [("system", "You are a test."), ("user", "a\n\nb")]),
    ([("system", "Be.")], [("user", "Be.")]),
    (
        [("system", "S"), ("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d")],
        [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c\n\nd")],
    ),
    (
        [("system", "S"), ("assistant", "Hi!"), ("user", "a")],
        [("system", "S"), ("user", ""), ("assistant", "Hi!"), ("user", "a")],
    ),
    (
        [("system", "S"), ("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])],
        [("system", "S"), ("user", "ab")],
    ),
    (
        [("system", "S"), ("user", "a"), ("assistant", "Once upon")],
        [("system", "S"), ("user", "a"), ("assistant", "Once upon")],
    ),
    ([("system", "S"), ("user", "a"), ("assistant", "")], [("system", "S"), ("user", "a")]),
]


@pytest.mark.parametrize(("given", "expected"), DIALOGS)
def test_messages_become_a_dialog_that_loses_nothing(
    given: list[tuple[str, Any]], expected: list[tuple[str, str]]
) -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        messages = [{"role": role, "content": content} for role, content in given]
        assert (await client.post(CHAT, {"messages": messages})).status == 200
        assert [(one.role, one.content) for one in engine.dialogs[-1]] == expected

    served(scene)


def test_a_fault_in_mid_answer_is_an_event_without_an_end() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        answer = await client.chat(stream=True)
        assert answer.status == 200
        assert answer.events[-1]["error"]["code"] == "generation_failed"
        assert not answer.is_done
        assert answer.is_whole
        whole = await client.chat()
        assert (whole.status, whole.error["type"]) == (500, "server_error")

    served(scene, ServedScripts([Script(("a", "b"), fails_after=1)]))


def test_the_models_the_files_and_the_load() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        models = (await client.get("/v1/models")).json
        assert [model["id"] for model in models["data"]] == ["scripted"]
        assert (await client.get("/v1/models/scripted")).json == models["data"][0]
        assert (await client.get("/v1/models/gpt-4o")).status == 404
        described = (await client.get("/engine/model")).json
        assert described["fingerprint"] == text_files().fingerprint
        assert described["info"]["name"] == "scripted"
        assert described["max_tokens"] == 4096
        for file in described["files"]:
            got = await client.get(f"/engine/files/{file['name']}")
            assert hashlib.sha256(got.body).hexdigest() == file["sha256"]
            assert got.headers["etag"] == f'"{file["sha256"]}"'
            again = await client.get(f"/engine/files/{file['name']}", if_none_match=got.headers["etag"])
            assert (again.status, again.body) == (304, b"")
        for name in ("weights.bin", "manifest.json", "..%2fmanifest.json", "../manifest.json"):
            assert (await client.get(f"/engine/files/{name}")).status == 404
        load = (await client.get("/engine/load")).json
        assert load["health"] == "ready"
        assert load["load"]["max_requests"] == 8
        assert (load["num_waiting"], load["draining"]) == (0, False)
        assert (await client.post("/engine/forget")).status == 204
        assert engine.num_drops == 1

    served(scene)


def test_another_models_client_is_told_before_anything_is_computed() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        for path, body in ((COMPLETIONS, {"prompt": "a"}), ("/engine/warm", {"prompt": "a"})):
            answer = await client.post(path, body, x_fingerprint="0" * 64)
            assert (answer.status, answer.error["code"]) == (409, "fingerprint_mismatch")
            assert (await client.post(path, body, x_fingerprint=text_files().fingerprint)).status == 200
        assert len(engine.generations) == 1

    served(scene)


def test_the_id_of_a_request_comes_back_or_is_made() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        assert (await client.get("/health", x_request_id="abc-1")).headers["x-request-id"] == "abc-1"
        made = (await client.get("/health", x_request_id="a b\x1b")).headers["x-request-id"]
        assert made.isalnum()

    served(scene)


def test_figures_count_and_name_nothing_that_was_said() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        await client.chat("a secret question")
        await client.chat("a secret question", user="somebody", temperature="x")
        figures = (await client.get("/metrics")).body.decode()
        assert 'llamacord_engine_requests_total{key="anybody",status="200"} 1.0' in figures
        assert 'llamacord_engine_requests_total{key="anybody",status="400"} 1.0' in figures
        assert 'llamacord_engine_tokens_total{key="anybody",kind="answer"} 3.0' in figures
        assert "llamacord_engine_requests_running_max 8.0" in figures
        assert "llamacord_engine_is_ready 1.0" in figures
        assert "secret" not in figures
        assert "somebody" not in figures

    served(scene)


def test_an_answer_that_goes_on_is_only_what_comes() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        answer = await client.chat("Tell me.", "Once upon")
        assert answer.json["choices"][0]["message"]["content"] == " a time"
        assert engine.generations[-1]._prompt.is_continued

    served(scene, ServedScripts([Script((" a", " time"), finish_reason=FinishReason.STOP)]))


def test_a_prompt_is_computed_ahead_until_its_client_leaves() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        kept = await client.post("/engine/warm", {"prompt": list(b"Once")})
        assert kept.events == [{"kept": True}]
        assert engine.warmed == [tuple(b"Once")]
        call = client.begin("/engine/warm", {"prompt": list(b"Twice")})
        call.leave()
        await call.task
        assert engine.warmings == []
        assert engine.warmed == [tuple(b"Once")]

    served(scene, ServedScripts(warm_s=3.0))


def test_answering_is_not_in_the_way_of_other_requests() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        call = client.begin_chat("Hello?", stream=True)
        assert (await client.get("/health")).json == {"status": "ready"}
        assert not call.task.done()
        assert (await call.done()).is_done

    served(scene, ServedScripts([Script(delay_s=1.0)]))
