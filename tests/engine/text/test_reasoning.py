"""How a model marks what it thinks: from its folder, or its template, and whether its prompt begins it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine.describing.manifest import ChatSpec, load_manifest
from engine.engine import Engine, EngineOptions
from engine.errors import ModelFormatError
from engine.text.chat_choice import detect_chat
from engine.types import ChatMessage, Reasoning
from tests.engine import chat_templates
from tests.engine.fakes import make_model_folder, tiny_bpe
from tests.engine.tiny_model import tiny_tokenizer

OPENING = chat_templates.THINKING.replace("assistant\n' }}", "assistant\n<think>\n' }}")
SHUT = OPENING.replace("<think>\n' }}", "<think>\n\n</think>\n\n' }}")
VICUNA = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def engine_of(folder: Path, template: str, chat_format: str = "jinja") -> Engine:
    return Engine(make_model_folder(folder, chat_format=chat_format, template=template), EngineOptions())


@pytest.mark.parametrize(
    ("template", "reasoning", "ends_turns"),
    [
        (chat_templates.THINKING, Reasoning("<think>", "</think>"), True),
        (OPENING, Reasoning("<think>", "</think>", is_open=True), True),
        (SHUT, Reasoning("<think>", "</think>"), True),
        (chat_templates.TRIMMING, None, True),
        (VICUNA, None, False),
        (VICUNA + "[THINK]{# [/THINK] #}", Reasoning("[THINK]", "[/THINK]", is_open=True), False),
    ],
)
def test_a_template_says_how_its_model_thinks_and_ends(
    tmp_path: Path, template: str, reasoning: Reasoning | None, ends_turns: bool
) -> None:
    info = engine_of(tmp_path / "model", template).info
    assert info.reasoning == reasoning
    assert info.ends_turns is ends_turns


TELLING = (  # which tells of its mode in the system prompt alone
    "{%- for message in messages %}{%- if message.role == 'system' and enable_thinking is false %}"
    "{{- 'Do not </think>. ' }}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{{- '<|im_start|>assistant\\n' }}"
)


@pytest.mark.parametrize(
    ("template", "thinks", "on", "off", "is_open"),
    [
        (chat_templates.QWEN_3, True, "assistant\n", "assistant\n<think>\n\n</think>\n\n", False),
        (chat_templates.SMOLLM_3, True, "assistant\n", "assistant\n<think>\n\n</think>\n", False),
        (chat_templates.GRANITE_3, False, "assistant<|end_of_role|>", "assistant<|end_of_role|>", False),
        (chat_templates.DEEPSEEK_3, False, "<｜Assistant｜><think>", "<｜Assistant｜></think>", True),
        (TELLING, True, "assistant\n", "assistant\n", False),
    ],
)
def test_thinking_is_switched_by_the_template(
    tmp_path: Path, template: str, thinks: bool, on: str, off: str, is_open: bool
) -> None:
    folder = make_model_folder(tmp_path / "model")
    manifest = load_manifest(folder)
    dataclasses.replace(manifest, chat=detect_chat(template)).save(folder)
    engine = Engine(folder, EngineOptions())
    dialog = [ChatMessage("user", "Hi")]
    if template == TELLING:
        dialog.insert(0, ChatMessage("system", "Rhyme."))

    def prompt(thinking: bool | None) -> str:
        return tiny_tokenizer().decode(engine.fit_prompt(dialog, 400, thinking=thinking).ids)

    assert engine.info.thinks is thinks
    assert prompt(None) == prompt(thinks)
    assert prompt(True) != prompt(False)
    assert (prompt(True)[-len(on) :], prompt(False)[-len(off) :]) == (on, off)
    marks = Reasoning("<think>", "</think>")
    assert engine.info.reasoning_when(False) == marks
    assert engine.info.reasoning_when(True) == dataclasses.replace(marks, is_open=is_open)
    assert engine.info.reasoning_when(None) == engine.info.reasoning_when(thinks)
    # An answer that is gone on with stands behind the block that its own prompt has opened.
    begun = engine.fit_prompt(dialog, 400, thinking=True, answer_so_far="Well").ids
    assert tiny_tokenizer().decode(begun) == prompt(True) + ("</think>\n\nWell" if is_open else "Well")


def test_a_model_that_chooses_itself_can_be_told_both(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    chat = detect_chat(chat_templates.MINICPM_5)
    dataclasses.replace(load_manifest(folder), chat=chat).save(folder)
    engine = Engine(folder, EngineOptions())
    ends = {}
    for thinking in (None, True, False):
        ids = engine.fit_prompt([ChatMessage("user", "Hi")], 400, thinking=thinking).ids
        ends[thinking] = tiny_tokenizer().decode(ids).rpartition("assistant\n")[2]
    assert ends == {None: "", True: "<think>\n", False: "<think>\n\n</think>\n\n"}
    assert engine.info.thinks is True
    marks = Reasoning("<think>", "</think>")
    assert engine.info.reasoning_when(None) == engine.info.reasoning_when(False) == marks
    assert engine.info.reasoning_when(True) == dataclasses.replace(marks, is_open=True)


@pytest.mark.parametrize("template", [chat_templates.THINKING, chat_templates.TRIMMING, OPENING])
def test_what_cannot_be_switched_stays_as_it_is(tmp_path: Path, template: str) -> None:
    engine = engine_of(tmp_path / "model", template)
    dialog = [ChatMessage("user", "Hi")]
    assert engine.info.thinks is None
    assert engine.fit_prompt(dialog, 400, thinking=False) == engine.fit_prompt(dialog, 400)
    assert engine.info.reasoning_when(False) == engine.info.reasoning


def test_other_formats_mark_nothing_and_end_turns(tmp_path: Path) -> None:
    for name in ("chatml", "llama-2"):
        info = engine_of(tmp_path / name, "", name).info
        assert (info.reasoning, info.ends_turns) == (None, True)


def test_the_marks_are_kept_when_a_model_is_converted(tmp_path: Path) -> None:
    chat = detect_chat(chat_templates.THINKING)
    assert chat.reasoning == ("<think>", "</think>")
    assert detect_chat(chat_templates.TRIMMING).reasoning == ()
    folder = make_model_folder(tmp_path / "model")
    manifest = load_manifest(folder)
    dataclasses.replace(manifest, chat=ChatSpec("chatml", reasoning=("<a>", "</a>"))).save(folder)
    assert Engine(folder, EngineOptions()).info.reasoning == Reasoning("<a>", "</a>")
    dataclasses.replace(manifest, chat=ChatSpec("chatml", reasoning=("<a>",))).save(folder)
    with pytest.raises(ModelFormatError, match="damaged"):
        load_manifest(folder)


def test_control_tokens_that_mark_thinking_are_part_of_what_is_said(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    chat = ChatSpec("chatml", reasoning=("<|endoftext|>", "</s>"))
    dataclasses.replace(load_manifest(folder), chat=chat).save(folder)
    engine = Engine(folder, EngineOptions())
    control = tiny_bpe().special_ids
    assert engine.text.token_bytes[control["<|endoftext|>"]] == b"<|endoftext|>"
    assert engine.text.token_bytes[control["<|im_start|>"]] == b""


def test_an_answer_that_is_gone_on_with_stands_behind_the_thinking(tmp_path: Path) -> None:
    dialog = [ChatMessage("user", "Hi")]
    opened = engine_of(tmp_path / "opened", OPENING)
    plain = opened.fit_prompt(dialog, 400).ids
    begun = opened.fit_prompt(dialog, 400, answer_so_far="Well").ids
    assert begun[: len(plain)] == plain
    assert list(begun[len(plain) :]) == tiny_bpe().encode_inside("</think>\n\nWell")
    shut = engine_of(tmp_path / "shut", SHUT)
    plain, begun = shut.fit_prompt(dialog, 400).ids, shut.fit_prompt(dialog, 400, answer_so_far="Well").ids
    assert list(begun[len(plain) :]) == tiny_bpe().encode("Well")
