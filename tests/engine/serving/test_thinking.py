"""What a model thinks comes apart from what it says, and clients can say whether it is to think."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.serving.thoughts import Parted, Thoughts
from engine.types import ModelInfo, Reasoning
from tests.engine.serving.served import COMPLETIONS, Answer, Client, ServedScripts, served
from tests.fakes import Script

MARKS = Reasoning("<think>", "</think>")
OPEN = dataclasses.replace(MARKS, is_open=True)
INFO = ModelInfo("m", "fp32", "cpu", "bytes", 4096, "", reasoning=MARKS)
OUTPUTS = [
    # output, whether the prompt began the thought, what is thought, what is said
    ("<think>\nHm.\n</think>\n\nFour.", False, "Hm.", "Four."),
    ("\n<think>Hm. < 5 </thin or so</think>Four.", False, "Hm. < 5 </thin or so", "Four."),
    ("<think>\n\n</think>\n\nFour.", False, "", "Four."),
    ("<think>a</think><think> b</think> Four.\n", False, "ab", "Four.\n"),
    ("\nHm.</think>4", True, "Hm.", "4"),
    ("<think>Hm.</think>4", True, "Hm.", "4"),
    ("Hm, hm. ", True, "Hm, hm.", ""),
    ("<think>Hm. </thi", False, "Hm. </thi", ""),
    (" Four. <think>no</think>", False, "", " Four. <think>no</think>"),
    ("<thin ice>", False, "", "<thin ice>"),
    ("<thi", False, "", "<thi"),
    ("", False, "", ""),
    ("</think>4", True, "", "4"),
]


def parted(thoughts: Thoughts, pieces: list[str]) -> Parted:
    parts = [*(thoughts.add(piece) for piece in pieces), thoughts.end()]
    return Parted("".join(one.thought for one in parts), "".join(one.said for one in parts))


@pytest.mark.parametrize(("output", "is_open", "thought", "said"), OUTPUTS)
def test_an_output_is_parted_the_same_however_it_comes(
    output: str, is_open: bool, thought: str, said: str
) -> None:
    marks = OPEN if is_open else MARKS
    assert parted(Thoughts(marks), [output]) == Parted(thought, said)
    assert parted(Thoughts(marks), list(output)) == Parted(thought, said)
    assert parted(Thoughts(None), list(output)) == Parted("", output)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", " ", "\n", "a", "</", "b."])),
    st.booleans(),
)
def test_any_output_is_parted_the_same_however_it_comes(runs: list[str], is_open: bool) -> None:
    output = "".join(runs)
    marks = OPEN if is_open else MARKS
    whole = parted(Thoughts(marks), [output])
    assert parted(Thoughts(marks), runs) == parted(Thoughts(marks), list(output)) == whole
    assert [letter for letter in "".join(whole) if letter in "ab."] == [
        letter for letter in output if letter in "ab."
    ], "nothing is lost"


def test_what_is_sure_does_not_wait() -> None:
    thoughts = Thoughts(OPEN)
    assert thoughts.add("Hm") == Parted("Hm", "")
    assert thoughts.add(". ") == Parted(".", ""), "a space may be the last"
    assert thoughts.add("So.</thin") == Parted(" So.", ""), "that may become a mark"
    assert thoughts.add("k>\n4") == Parted("", "4")
    assert thoughts.add("2 ") == Parted("", "2 ")


def in_stream(answer: Answer, name: str) -> str:
    deltas = [choice["delta"] for event in answer.events for choice in event["choices"]]
    return "".join(delta.get(name, "") for delta in deltas)


@pytest.mark.parametrize("is_open", [True, False])
def test_what_is_thought_is_reasoning_content(is_open: bool) -> None:
    info = dataclasses.replace(INFO, reasoning=OPEN if is_open else MARKS)
    pieces = ("" if is_open else "<think>", "\nHm", ". So.\n</th", "ink>\n\nFo", "ur.")

    async def scene(client: Client, _engine: ServedScripts) -> None:
        answer = await client.chat(stream=True)
        assert (in_stream(answer, "reasoning_content"), in_stream(answer, "content")) == ("Hm. So.", "Four.")
        assert answer.is_done
        message = (await client.chat()).json["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm. So.", "Four.")
        kept = "<think>\nHm. So.\n</think>\n\nFour."
        answer = await client.chat(stream=True, reasoning_format="none")
        assert (in_stream(answer, "reasoning_content"), answer.text) == ("", kept)
        message = (await client.chat(reasoning_format="none")).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": kept, "refusal": None}
        raw = await client.post(COMPLETIONS, {"prompt": "2 + 2"})
        assert raw.json["choices"][0]["text"] == "".join(pieces), "our own clients know of it"

    served(scene, ServedScripts([Script(pieces, delay_s=0.2)], info=info))


def test_an_answer_that_ends_within_a_thought_loses_nothing() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        answer = await client.chat(stream=True)
        assert (in_stream(answer, "reasoning_content"), in_stream(answer, "content")) == ("Hm. </th", "")
        message = (await client.chat()).json["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm. </th", "")

    info = dataclasses.replace(INFO, reasoning=OPEN)
    served(scene, ServedScripts([Script(("Hm. ", "</th"))], info=info))


def test_an_answer_that_is_gone_on_with_is_only_said() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        message = (await client.chat("Tell me.", "Once upon")).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": " a time", "refusal": None}

    info = dataclasses.replace(INFO, reasoning=OPEN)
    served(scene, ServedScripts([Script((" a", " time"))], info=info))


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, None),
        ({"chat_template_kwargs": {}}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"thinking": False}, "reasoning_effort": "none"}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, None),
    ],
)
def test_whether_it_thinks_is_the_clients_choice(fields: dict[str, Any], thinking: bool | None) -> None:
    """The answer is parted by the marks that its own prompt leads to."""

    async def scene(client: Client, engine: ServedScripts) -> None:
        message = (await client.chat(**fields)).json["choices"][0]["message"]
        assert engine.thinking == [thinking]
        assert message.get("reasoning_content") == (None if thinking is False else "Hm.")
        assert message["content"] == ("Hm.</think>4" if thinking is False else "4")

    info = dataclasses.replace(INFO, reasoning=OPEN, thinks=True, switched={False: MARKS})
    served(scene, ServedScripts([Script(("Hm.", "</think>4"))], info=info))


@pytest.mark.parametrize(
    ("reasoning", "fields", "words"),
    [
        (OPEN, {"reasoning_effort": "none"}, "reasoning_effort must not be none: this model always thinks."),
        (
            OPEN,
            {"chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs.enable_thinking must not be false: this model always thinks.",
        ),
        (OPEN, {"chat_template_kwargs": {"enable_thinking": True}}, ""),
        (MARKS, {"reasoning_effort": "none"}, ""),
        (None, {"reasoning_effort": "none"}, ""),
        (None, {"chat_template_kwargs": {"enable_thinking": False}}, ""),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    reasoning: Reasoning | None, fields: dict[str, Any], words: str
) -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        answer = await client.chat(**fields)
        if not words:
            assert answer.status == 200
            return
        assert (answer.status, answer.error["message"]) == (400, words)

    served(scene, ServedScripts(info=dataclasses.replace(INFO, reasoning=reasoning)))
