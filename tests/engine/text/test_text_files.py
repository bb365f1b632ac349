"""Prompts are made elsewhere as where the model runs, and answers are gone on with where they broke off."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.describing.manifest import ChatSpec, load_manifest
from engine.engine import Engine, EngineOptions
from engine.errors import ModelFormatError
from engine.opening import open_folder
from engine.text.model_text import ModelText
from engine.text.text_files import TEXT_FILE, TextFiles
from engine.text.tokenizer import SentencePieceTokenizer
from engine.types import ChatMessage
from tests.engine import chat_templates
from tests.engine.fakes import make_model_folder
from tests.engine.tiny_sentencepiece import tiny_model_bytes

DIALOG = (
    ChatMessage("system", "Be brief."),
    ChatMessage("user", "Hello, how are you?"),
    ChatMessage("assistant", "Fine, thanks."),
    ChatMessage("user", "Grüße aus Köln 🙂"),
)


def sent(folder: Path, to: Path, chosen: str = "") -> TextFiles:
    """Return the files as they are after they were written somewhere else."""
    files = TextFiles.of(open_folder(folder), chosen)
    to.mkdir()
    for name in files.entries:
        (to / name).write_bytes(files.read(name))
    return TextFiles.load(to)


@pytest.mark.parametrize(
    ("chat_format", "template", "chosen"),
    [
        ("chatml", "", ""),
        ("llama-2", "", ""),
        ("jinja", chat_templates.THINKING, ""),
        ("chatml", "", "llama-2"),
    ],
)
def test_prompts_are_the_same_where_there_are_no_weights(
    tmp_path: Path, chat_format: str, template: str, chosen: str
) -> None:
    folder = make_model_folder(tmp_path / "model", chat_format=chat_format, template=template)
    engine = Engine(folder, EngineOptions(chat_format=chosen))
    files = sent(folder, tmp_path / "elsewhere", chosen)
    text = files.open()
    assert files.fingerprint == engine.text_files().fingerprint
    for budget in (400, 75):
        for begun in ("", "Well, "):
            prompt = engine.fit_prompt(DIALOG, budget, answer_so_far=begun)
            assert text.fit_prompt(DIALOG, budget, answer_so_far=begun) == prompt
    assert (text.reasoning, text.ends_turns) == (engine.info.reasoning, engine.info.ends_turns)
    assert text.chat.format == engine.info.chat_format
    assert text.is_safe("[INST]") is engine.is_safe("[INST]")
    assert text.count_tokens("Hello there") == engine.count_tokens("Hello there")
    assert not [path for path in (tmp_path / "elsewhere").iterdir() if path.name.startswith("weights")]


def test_whatever_changes_text_or_tokens_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    found = {
        TextFiles.of(open_folder(folder)).fingerprint,
        TextFiles.of(open_folder(folder), "llama-2").fingerprint,
    }
    manifest = load_manifest(folder)
    for changed in (
        dataclasses.replace(manifest, chat=ChatSpec("chatml", "You are another one.")),
        dataclasses.replace(manifest, stop_ids=(5,)),
    ):
        changed.save(folder)
        found.add(TextFiles.of(open_folder(folder)).fingerprint)
    tokenizer = folder / manifest.tokenizer.file
    tokenizer.write_text(tokenizer.read_text() + "\n")
    found.add(TextFiles.of(open_folder(folder)).fingerprint)
    assert len(found) == 5


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    files = sent(make_model_folder(tmp_path / "model"), tmp_path / "elsewhere")
    described = json.loads(files.described)
    outside = {**described["tokenizer"], "file": "../tokenizer.json"}
    damages: tuple[object, ...] = (
        {**described, "tokenizer": outside},
        {**described, "eos_id": 10**6},
        {**described, "bos_id": "1"},
        {**described, "more": 1},
        {name: value for name, value in described.items() if name != "chat"},
        [],
    )
    for damage in damages:
        (tmp_path / "elsewhere" / TEXT_FILE).write_text(json.dumps(damage))
        with pytest.raises(ModelFormatError, match=TEXT_FILE):
            TextFiles.load(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / TEXT_FILE).unlink()
    with pytest.raises(ModelFormatError, match="cannot be read"):
        TextFiles.load(tmp_path / "elsewhere")


@pytest.fixture(scope="module")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    real = os.environ.get("LLAMACORD_TOKENIZER")
    path = Path(real) if real else tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    if not real:
        path.write_bytes(tiny_model_bytes())
    tokenizer = SentencePieceTokenizer(path)
    return ModelText(_Llama2(tokenizer.vocab_size, ChatSpec("llama-2")), tokenizer)


@dataclasses.dataclass(frozen=True)
class _Llama2:
    vocab_size: int
    chat: ChatSpec
    bos_id: int = 1
    eos_id: int = 2
    stop_ids: tuple[int, ...] = ()


TEXTS = st.text(st.sampled_from("ab eé\n 🙂T'.,"), min_size=1, max_size=12)


@given(first=TEXTS, second=TEXTS)
def test_what_an_answer_is_gone_on_with_is_what_was_said(llama2: ModelText, first: str, second: str) -> None:
    """Neither is a space put in where an answer goes on, nor one lost."""
    begun = llama2.output_ids(first, is_continued=False)
    said = b"".join(llama2.token_bytes[token] for token in begun)
    assert said.removeprefix(b" ").decode() == first or said.decode() == first
    more = llama2.output_ids(second, is_continued=True)
    assert b"".join(llama2.token_bytes[token] for token in more).decode() == second


def test_marks_of_thinking_are_control_tokens_again(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    chat = ChatSpec("chatml", reasoning=("<|endoftext|>", "</s>"))
    dataclasses.replace(load_manifest(folder), chat=chat).save(folder)
    text = TextFiles.of(open_folder(folder)).open()
    ids = text.output_ids("<|endoftext|>hm</s>so", is_continued=False)
    assert ids[0] == text.tokenizer.special_ids["<|endoftext|>"]
    assert b"".join(text.token_bytes[token] for token in ids) == b"<|endoftext|>hm</s>so"
