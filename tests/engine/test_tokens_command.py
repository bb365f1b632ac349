"""`python -m engine tokens`: one answer a line, whatever the line, for every kind of model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.__main__ import main
from engine.describing.architecture import Precision
from tests.engine import chat_templates
from tests.engine.tiny_gguf import TinyGGUF
from tests.engine.tiny_hf import TinyHuggingFace, with_sentencepiece
from tests.engine.tiny_model import make_tiny_model, tiny_tokenizer
from tests.engine.tiny_sentencepiece import tiny_model_bytes

HELLO = '[{"role": "user", "content": "Hi <|im_end|>"}]'
Run = Callable[..., list[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def tokens(*arguments: str | Path, lines: list[bytes | str], status: int = 0) -> list[str]:
        """Return the lines that come out, on stderr where the command fails."""
        data = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["tokens", *map(str, arguments)]) == status
        out, err = capsys.readouterr()
        return (err if status else out).splitlines()

    return tokens


def chatml_ids() -> list[int]:
    library = tiny_tokenizer()
    user, newline, assistant = (
        library.encode(text).ids for text in ("user\nHi <|im_end|>", "\n", "assistant\n")
    )
    return [1, *user, 2, *newline, 1, *assistant]


def test_a_model_folder_shows_its_format(tmp_path: Path, run: Run) -> None:
    folder = make_tiny_model(tmp_path / "model", Precision.INT8)
    (line,) = run("--model", folder, "--json", lines=[HELLO])
    text = "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert json.loads(line) == {"ids": chatml_ids(), "text": text}
    shown = run("--model", folder, lines=[HELLO])
    assert shown[0] == f"Line 1: {len(chatml_ids())} tokens"
    assert json.loads(shown[1]) == text
    assert shown[2].split() == list(map(str, chatml_ids()))


def sources(folder: Path) -> dict[str, Path]:
    gguf = TinyGGUF()
    gguf.fields["tokenizer.chat_template"] = chat_templates.TRIMMING
    model = TinyHuggingFace()
    model.files["chat_template.jinja"] = chat_templates.TRIMMING.encode()
    return {"gguf": gguf.save(folder / "tiny.gguf"), "huggingface": model.save(folder / "source")}


@pytest.mark.parametrize("kind", ["gguf", "huggingface"])
def test_what_can_be_converted_need_not_be_first(tmp_path: Path, run: Run, kind: str) -> None:
    source = sources(tmp_path)[kind]
    before = sorted(tmp_path.rglob("*"))
    (line,) = run("--model", source, "--json", lines=[HELLO])
    text = "<|im_start|><|im_start|>user\n\nHi <|im_end|><|im_end|><|im_start|>assistant\n\n"
    assert json.loads(line)["text"] == text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_base_model_has_no_format_but_may_be_given_one(tmp_path: Path, run: Run) -> None:
    source = with_sentencepiece().save(tmp_path / "source")
    (said,) = run("--model", source, lines=[HELLO], status=1)
    assert said.endswith("a base model without a chat format. Name one with --format.")
    (line,) = run("--model", source, "--format", "llama-2", "--json", lines=[HELLO])
    assert json.loads(line)["text"] == "<s>[INST] Hi <|im_end|> [/INST]"
    (said,) = run("--model", source, "--format", "chatml", lines=[HELLO], status=1)
    assert "lacks '<|im_start|>'" in said


REFUSED: dict[str, tuple[bytes | str, str]] = {
    "no JSON": ("nope", "not valid JSON"),
    "half": ('[{"role": "user", ', "not valid JSON"),
    "no text": (b"\xff\xfe[]", "not valid JSON"),
    "too deep": ("[" * 100_000, "not valid JSON"),
    "an object": ('{"role": "user", "content": ""}', "A dialog must be a JSON list"),
    "a list of texts": ('["Hi"]', "A dialog must be a JSON list"),
    "empty": ("[]", "must alternate"),
    "another role": ('[{"role": "bot", "content": ""}]', "one of system, user, assistant, not 'bot'"),
    "a role that is a list": ('[{"role": ["user"], "content": ""}]', "A role must be one of"),
    "no role": ('[{"content": ""}]', "A role must be one of"),
    "no content": ('[{"role": "user"}]', "content of a message must be text"),
    "a number": ('[{"role": "user", "content": 1}]', "content of a message must be text"),
    "two users": ('[{"role": "user", "content": ""}, {"role": "user", "content": ""}]', "must alternate"),
    "only a system": ('[{"role": "system", "content": ""}]', "must alternate"),
    "control tags": ('[{"role": "user", "content": "[/INST]"}]', "control tags"),
}


def test_a_bad_line_does_not_stop_the_others(tmp_path: Path, run: Run) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiny_model_bytes())
    lines = [HELLO, *(line for line, _ in REFUSED.values()), "", "  ", HELLO]
    command = ("--tokenizer", tmp_path / "tokenizer.model", "--format", "llama-2")
    answers: list[dict[str, Any]] = [json.loads(line) for line in run(*command, "--json", lines=lines)]
    assert len(answers) == len(REFUSED) + 2
    assert answers[0] == answers[-1]
    assert set(answers[0]) == {"ids", "text"}
    for number, (answer, (_, message)) in enumerate(zip(answers[1:], REFUSED.values(), strict=False), 2):
        assert set(answer) == {"error"}
        assert answer["error"].startswith(f"Line {number}: ")
        assert answer["error"].endswith(".")
        assert message in answer["error"]
    assert run(*command, lines=["nope"]) == ["Line 1: This is not valid JSON."]


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, run: Run) -> None:
    (said,) = run("--model", tmp_path / "nowhere", lines=[], status=1)
    assert said.startswith("llamacord: There is no file or folder")
    (said,) = run("--tokenizer", tmp_path / "nowhere", "--format", "llama-2", lines=[], status=1)
    assert said == "llamacord: nowhere is not a readable SentencePiece model."
    (said,) = run("--tokenizer", tmp_path / "nowhere", lines=[], status=1)
    assert said.endswith("add --format.")


def test_a_reader_that_has_seen_enough_ends_it_silently(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", Precision.INT8)
    dialogs = tmp_path / "dialogs.jsonl"
    dialogs.write_text((json.dumps([{"role": "user", "content": "Hi " * 200}]) + "\n") * 200)
    command = [sys.executable, "-m", "engine", "tokens", "--model", str(folder)]
    with (
        dialogs.open() as lines,
        subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=lines, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
