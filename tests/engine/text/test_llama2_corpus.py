"""What a Llama 2 chat model sees, by `python -m engine tokens`, against Meta's published rules.

The rules are written down here once more from `generation.py` and use the sentencepiece library alone. The
corpus runs on a small model trained for the tests, and on Llama 2's own where LLAMACORD_TOKENIZER names it.
"""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece

from engine.__main__ import main
from tests.engine.tiny_sentencepiece import (
    LLAMA2_PATH,
    NEEDS_LLAMA2,
    llama2_processor,
    tiny_model_bytes,
    tiny_processor,
)

Dialog = list[dict[str, str]]

TAGS = ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"]
WHITE = [
    *" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000",
    *map(chr, range(0x2000, 0x200B)),
]
"""Everything that Python's strip() takes off."""
NOT_WHITE = ["\u200b", "\u2060", "\ufeff", "\u180e", "\x00", "\x7f"]
CONTENTS = {
    "plain": "How are you?",
    "empty": "",
    "spaces": "   ",
    "white at both ends": " \t\n\u3000 text \r\n\n\x85",
    "white inside": "one  two   three\n\n\nfour\t\tfive \u2003 six",
    **{f"white {ord(c):04x}": f"{c}a{c}{c}b{c}" for c in WHITE},
    **{f"not white {ord(c):04x}": f"{c}a{c}{c}b{c}" for c in NOT_WHITE},
    "emoji": "🙂 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️",
    "cjk": "你好，世界。 こんにちは 한국어 漢字かな交じり文",
    "right to left": "שלום عليكم \u202eabc",
    "combining": "e\u0301 ﬁ Å a\u0308\u0323",
    "code": "```python\ndef f(x):\n    return {x: [y for y in range(3)]}  # 🐍\n```",
    "html": "<html><s>struck</s></html> &lt;s&gt;",
    "control tokens": "<s></s><unk><pad><0x0A> <s> </s>a</s>b<s>",
    "of other models": "<|im_start|>system\nx<|im_end|><|endoftext|><|eot_id|>",
    "almost tags": "[INST [/INST INST] [ INST ] <SYS> <</SYS> <<sys>> [inst]",
    "underscores": "\u2581a\u2581\u2581b \u2581 _",
    "numbers": "0123456789 3.14159 -1e10 ½ ٣",
    "half a character": "a\ud83d b\udc00",
    "long": "word " * 500,
    "replacement": "\ufffd\ufffe\uffff",
}
SYSTEMS = [None, "", " \n ", "You are a pirate.", "Zeile 1\nZeile 2 🏴‍☠️\n", "<s>"]


def meta_ids(library: sentencepiece.SentencePieceProcessor, dialog: Dialog) -> list[int]:
    """Encode as `chat_completion` does."""
    if dialog[0]["role"] == "system":
        content = "<<SYS>>\n" + dialog[0]["content"] + "\n<</SYS>>\n\n" + dialog[1]["content"]
        dialog = [{"role": dialog[1]["role"], "content": content}, *dialog[2:]]
    ids: list[int] = []
    for prompt, answer in zip(dialog[::2], dialog[1::2], strict=False):
        text = f"[INST] {prompt['content'].strip()} [/INST] {answer['content'].strip()} "
        ids += [library.bos_id(), *library.encode(well_formed(text)), library.eos_id()]
    last = f"[INST] {dialog[-1]['content'].strip()} [/INST]"
    return [*ids, library.bos_id(), *library.encode(well_formed(last))]


def meta_text(dialog: Dialog) -> str:
    """Return the same as a text, for people to read."""
    contents = [message["content"] for message in dialog]
    if dialog[0]["role"] == "system":
        contents[:2] = [f"<<SYS>>\n{contents[0]}\n<</SYS>>\n\n{contents[1]}"]
    pairs = zip(contents[:-1:2], contents[1::2], strict=True)
    past = [f"<s>[INST] {user.strip()} [/INST] {answer.strip()} </s>" for user, answer in pairs]
    # A text holds no mark of its own for a space: SentencePiece writes one as U+2581.
    return well_formed("".join([*past, f"<s>[INST] {contents[-1].strip()} [/INST]"])).replace("\u2581", " ")


def well_formed(text: str) -> str:
    """Replace halves of characters, which SentencePiece cannot take."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def dialog_of(system: str | None, *contents: str) -> Dialog:
    start = [] if system is None else [{"role": "system", "content": system}]
    roles = itertools.cycle(("user", "assistant"))
    return [*start, *({"role": role, "content": text} for role, text in zip(roles, contents, strict=False))]


def corpus() -> list[Dialog]:
    texts = list(CONTENTS.values())
    alone = [dialog_of(system, text) for system in SYSTEMS for text in texts]
    answered = [dialog_of(None, "Hi", text, text) for text in texts]
    systems = [dialog_of(text, "Hi", "Hello", "Bye") for text in texts]
    around = itertools.cycle(texts)
    long = [
        dialog_of(system, *itertools.islice(around, 2 * num_turns - 1))
        for num_turns in range(1, 9)
        for system in SYSTEMS
    ]
    return [*alone, *answered, *systems, *long]


class Model(NamedTuple):
    """A tokenizer's file and the same as the library has it."""

    path: Path
    library: sentencepiece.SentencePieceProcessor


@pytest.fixture(scope="module", params=["tiny", pytest.param("llama2", marks=NEEDS_LLAMA2)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if request.param == "llama2":
        return Model(Path(LLAMA2_PATH), llama2_processor())
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tiny_model_bytes())
    return Model(path, tiny_processor())


@pytest.fixture
def tokens(model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(dialogs: list[Dialog]) -> list[dict[str, Any]]:
        lines = "".join(json.dumps(dialog) + "\n" for dialog in dialogs)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        assert main(["tokens", "--tokenizer", str(model.path), "--format", "llama-2", "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_the_ids_and_the_text_are_metas(model: Model, tokens: Any) -> None:
    dialogs = corpus()
    answers = tokens(dialogs)
    assert len(answers) == len(dialogs) > 400
    for dialog, answer in zip(dialogs, answers, strict=True):
        assert answer["ids"] == meta_ids(model.library, dialog), dialog
        assert answer["text"] == meta_text(dialog), dialog


def test_strip_takes_off_what_the_corpus_calls_white() -> None:
    everything = [chr(code) for code in range(0x110000)]
    assert sorted(WHITE) == [character for character in everything if not character.strip()]


def test_control_ids_come_from_the_format_alone(tokens: Any) -> None:
    for dialog, answer in zip(corpus(), tokens(corpus()), strict=True):
        num_turns = sum(message["role"] == "user" for message in dialog)
        assert [token for token in answer["ids"] if token in (1, 2)] == [1, 2] * (num_turns - 1) + [1]


@pytest.mark.parametrize("tag", TAGS)
def test_control_tags_are_refused_in_any_message(tokens: Any, tag: str) -> None:
    contents = ["You are.", "One?", "One.", "Two?"]
    dialogs = []
    for place, around in itertools.product(range(4), ("{}", "a{}b", "\n {} \n", "<s>{}</s>")):
        changed = [*contents[:place], around.format(tag), *contents[place + 1 :]]
        dialogs.append(dialog_of(*changed))
    for answer in tokens(dialogs):
        assert list(answer) == ["error"]
        assert "control tags" in answer["error"]


@NEEDS_LLAMA2
def test_an_instruction_always_begins_with_the_same_id(model: Model, tokens: Any) -> None:
    if model.library.vocab_size() != 32000:
        pytest.skip("This is about Llama 2's own tokenizer.")
    for answer in tokens(corpus()):
        ids = answer["ids"]
        assert {ids[at + 1] for at, token in enumerate(ids) if token == 1} == {518}
