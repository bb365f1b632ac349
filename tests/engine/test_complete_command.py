"""`python -m engine complete`: ends where the chat format does, bears padding, follows the model's advice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.__main__ import main
from engine.commands import complete
from engine.convert.converter import convert
from engine.describing.architecture import Precision
from engine.describing.manifest import ChatSpec, load_manifest
from engine.opening import ConvertedFolder
from engine.types import SamplingParams
from tests.engine import chat_templates
from tests.engine.tiny_model import CONTROL_TOKENS, TinySource, tiny_config, tiny_tokenizer


class Scripted:
    """A `SlotModel` that says these ids one after the other."""

    def __init__(self, ids: Sequence[int], vocab_size: int) -> None:
        self._ids = iter(ids)
        self._vocab_size = vocab_size

    def prefill(self, _slot: int, ids: list[int], _start: int) -> np.ndarray:
        return self._row() if len(ids) > 2 else np.zeros(self._vocab_size, np.float32)

    def decode(self, _first: int, ids: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        return self._row()[None] if lengths[0] > 1 else np.zeros((len(ids), self._vocab_size), np.float32)

    def _row(self) -> np.ndarray:
        row = np.zeros(self._vocab_size, np.float32)
        row[next(self._ids)] = 50.0
        return row


class Padded(TinySource):
    """The tiny model with more embeddings than tokens, whose template alone knows what ends a turn."""

    def __init__(self) -> None:
        super().__init__(tiny_config(vocab_size=400))
        self.chat = ChatSpec("jinja", "", chat_templates.TRIMMING)
        self.eos_id = 0
        self.sampling = {"temperature": 0.3, "top_k": 7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    convert(Padded(), tmp_path / "model", Precision.FP32)
    return tmp_path / "model"


def said(folder: Path, ids: Sequence[int], capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConvertedFolder, "load_model", lambda *_: Scripted(ids, 400))
        assert main(["complete", "--model", str(folder), "--prompt", "Hi there", *arguments]) == 0
    return capsys.readouterr().out


def test_a_chat_ends_where_its_template_does_and_padding_says_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = tiny_tokenizer().encode("answer").ids
    end = CONTROL_TOKENS.index("<|im_end|>")
    assert load_manifest(folder).eos_id != end
    script = [*word, 399, *word, end, *word, 0]
    assert said(folder, script, capsys, "--chat", "--temperature", "0") == "answeranswer\n"
    assert said(folder, script, capsys, "--temperature", "0") == "answeranswer" + "answer\n"


def test_a_template_can_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = tiny_tokenizer().encode("answer").ids
    script = [*word, 0, *word]
    assert said(folder, script, capsys, "--chat", "--chat-template", "alpaca") == "answer\n"


def test_what_is_asked_for_lies_over_the_models_own_over_the_examples(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[SamplingParams] = []

    def stream(*arguments: object) -> list[str]:
        seen.append(next(one for one in arguments if isinstance(one, SamplingParams)))
        return []

    monkeypatch.setattr(complete, "stream_completion", stream)
    plain = SamplingParams(0.0, 1.0, 0, 0.0, 1.0, max_new_tokens=256)
    for arguments, expected in (
        ([], dataclasses.replace(plain, temperature=0.3, top_k=7)),
        (["--temperature", "0"], dataclasses.replace(plain, top_k=7)),
        (
            ["--top_p", "0.5", "--seed", "3"],
            dataclasses.replace(plain, temperature=0.3, top_p=0.5, top_k=7, seed=3),
        ),
    ):
        assert main(["complete", "--model", str(folder), "--prompt", "Hi", *arguments]) == 0
        assert seen.pop() == expected
    manifest = load_manifest(folder)
    dataclasses.replace(manifest, sampling={}).save(folder)
    assert main(["complete", "--model", str(folder), "--prompt", "Hi"]) == 0
    assert seen.pop() == plain
