"""A SentencePiece tokenizer that went through GGUF metadata encodes exactly as the original does."""

import os
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from engine.convert import gguf_tokenizer
from engine.convert.gguf_source import GGUFSource
from engine.convert.gguf_tokenizer import save_tokenizer
from engine.describing.manifest import ChatSpec
from engine.errors import ModelFormatError
from engine.text.chat_choice import classic_templates, named_chat, writes
from engine.text.prompt import make_chat_format
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.types import ChatMessage
from tests.engine.tiny_gguf import TinyGGUF
from tests.engine.tiny_model import tiny_config

TEXTS = [
    "Hello, world!",
    "  two leading spaces,   runs   of them, and one behind ",
    "",
    " ",
    "line\nbreaks\n\nand\ttabs\r\n",
    "<s>[INST] <<SYS>> </s> <unk> <0x0A> are text",
    "emoji 🦙🇩🇪👩‍👩‍👧 and CJK 漢字かな 한국어",
    "def f(x):\n    return x ** 2  # code",
]
CORPUS = ["The llama sat on the mat.", "Numbers 1 2 3 and words, words, words.", "Ein Lama frisst Gras."] * 20


def gguf_fields(processor: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """Describe a SentencePiece model the way llama.cpp's converter writes it."""
    kinds = []
    for index in range(processor.vocab_size()):
        if processor.is_unknown(index):
            kinds.append(2)
        elif processor.is_control(index):
            kinds.append(3)
        else:
            kinds.append(6 if processor.is_byte(index) else 1)
    size = processor.vocab_size()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(index) for index in range(size)],
        "tokenizer.ggml.scores": [processor.get_score(index) for index in range(size)],
        "tokenizer.ggml.token_type": kinds,
    }


def through_gguf(processor: sentencepiece.SentencePieceProcessor, folder: Path) -> Tokenizer:
    fields = gguf_fields(processor)
    return load_tokenizer(folder, save_tokenizer(fields.get, folder))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    """A small model with Llama 2's settings."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "small"),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=9,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "small.model"))


@pytest.fixture(scope="module")
def copy_of_trained(
    trained: sentencepiece.SentencePieceProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return through_gguf(trained, tmp_path_factory.mktemp("copy"))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_has_the_ids_of_the_original(
    trained: sentencepiece.SentencePieceProcessor, copy_of_trained: Tokenizer, text: str
) -> None:
    assert copy_of_trained.encode(text) == trained.encode(text)


def test_llama_2s_own_tokenizer_survives(tmp_path: Path) -> None:
    path = os.environ.get("LLAMACORD_TOKENIZER")
    if not path:
        pytest.skip("LLAMACORD_TOKENIZER names no tokenizer.model of Llama 2.")
    original = sentencepiece.SentencePieceProcessor(model_file=path)
    copy = through_gguf(original, tmp_path)
    assert copy.special_ids == {"<s>": 1, "</s>": 2}
    for text in TEXTS:
        assert copy.encode(text) == original.encode(text)


def test_what_the_template_writes_is_control_though_the_file_calls_it_added(tmp_path: Path) -> None:
    file = TinyGGUF()
    types = file.fields["tokenizer.ggml.token_type"]
    words = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    places = [file.fields["tokenizer.ggml.tokens"].index(word) for word in words]
    for place in places:
        types[place] = 4
    source = GGUFSource(file.save(tmp_path / "tiny.gguf"))
    tokenizer = load_tokenizer(tmp_path, source.save_tokenizer(tmp_path))
    assert set(tokenizer.special_ids) == {"<|im_start|>", "<|im_end|>"}
    ids = tokenizer.encode("<|im_start|>user<|endoftext|><|im_end|>")
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert ids.count(places[2]) == 1
    assert (
        b"".join(tokenizer.token_bytes[token] for token in ids) == b"<|im_start|>user<|endoftext|><|im_end|>"
    )


LLAMA_3 = ("DON'T 1234!\n\n  the", ["DON", "'T", " ", "123", "4", "!\n\n", " ", " the"])
SPLITS: dict[str | None, tuple[str, list[str]]] = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx"), LLAMA_3),
    "qwen2": ("DON'T 1234!\n\n  the", ["DON", "'T", " ", "1", "2", "3", "4", "!\n\n", " ", " the"]),
    "tekken": ("camelCase's 12!/\n the", ["camel", "Case", "'s", " ", "1", "2", "!/\n", " the"]),
    "gpt-4o": ("camelCase's 1234!/\n the", ["camel", "Case's", " ", "123", "4", "!/\n", " the"]),
    "deepseek-llm": ("don't 1234\n你好 the", ["don", "'", "t", " ", "1234", "\n", "你好", " the"]),
    "deepseek-v3": ("don't 1234\n你好 the", ["don", "'t", " ", "123", "4", "\n", "你好", " the"]),
    "default": ("don't $5 12345 the", ["don", "'", "t", " ", "$", "5", " ", "123", "45", " the"]),
    None: ("don't $5 12345 the", ["don", "'", "t", " ", "$", "5", " ", "123", "45", " the"]),
    "falcon": ("a `b 1234 the", ["a", " ", "`", "b", " ", "123", "4", " the"]),
    "refact": ("don't 12 the", ["don", "'t", " ", "1", "2", " the"]),
    "smollm": ("don't 1234\n\n  the", ["don", "'t", " ", "1", "2", "3", "4", "\n\n ", " the"]),
    "gpt-2": ("don't 1234\n\n  the", ["don", "'t", " 1234", "\n\n ", " the"]),
    "llama-bpe": ("DON'T 1234!\n\n  the", ["DON", "'T", " ", "123", "4", "!\n\n", " ", " the"]),
}


WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")


@pytest.mark.parametrize("name", SPLITS)
def test_words_are_split_as_the_file_names_it(tmp_path: Path, name: str | None) -> None:
    text, words = SPLITS[name]
    file = TinyGGUF()
    file.fields["tokenizer.ggml.pre"] = name
    if name is None:
        del file.fields["tokenizer.ggml.pre"]
    del file.fields["tokenizer.ggml.merges"][1:]  # one is left: words are found whole, or not at all
    spec = GGUFSource(file.save(tmp_path / "tiny.gguf")).save_tokenizer(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / spec.file))
    split = library.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in split] == words
    assert (len(library.encode(" the").ids) == 1) == (name in WHOLE_WORDS)


def test_an_added_piece_is_control_where_it_ends_a_text(
    trained: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    fields = gguf_fields(trained)
    fields["tokenizer.ggml.tokens"] += ["<tool>", "<end>"]
    fields["tokenizer.ggml.scores"] += [0.0, 0.0]
    fields["tokenizer.ggml.token_type"] += [4, 4]
    size = trained.vocab_size()
    tokenizer = load_tokenizer(tmp_path, save_tokenizer(fields.get, tmp_path, lambda _, i: i == size + 1))
    assert dict(tokenizer.special_ids) == {"<s>": 1, "</s>": 2, "<end>": size + 1}
    ids = tokenizer.encode("a<tool>b<end>")
    assert (size in ids, size + 1 in ids) == (True, False)


def test_an_unknown_tokenizer_is_refused(tmp_path: Path) -> None:
    fields = {
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.token_type": [1],
        "tokenizer.ggml.model": "bert",
    }
    with pytest.raises(ModelFormatError, match="'bert'"):
        save_tokenizer(fields.get, tmp_path)


def test_token_types_must_match_the_tokens(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1]}
    with pytest.raises(ModelFormatError, match="2 tokens and 1 token types"):
        save_tokenizer(fields.get, tmp_path)


def test_no_space_is_put_before_texts_where_the_file_says_so(
    trained: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    fields = gguf_fields(trained) | {"tokenizer.ggml.add_space_prefix": False}
    tokenizer = load_tokenizer(tmp_path, save_tokenizer(fields.get, tmp_path))
    for text in ("mat", " mat"):
        ids = tokenizer.encode(text)
        assert ids == tokenizer.encode_inside(text)
        assert b"".join(tokenizer.token_bytes[token] for token in ids).decode() == text
    assert not tokenizer.opening_space_ids


def test_chatml_needs_no_template(tmp_path: Path) -> None:
    file = TinyGGUF()
    del file.fields["tokenizer.chat_template"]
    types = file.fields["tokenizer.ggml.token_type"]
    places = [file.fields["tokenizer.ggml.tokens"].index(word) for word in ("<|im_start|>", "<|im_end|>")]
    for place in places:
        types[place] = 4
    path = file.save(tmp_path / "tiny.gguf")
    assert GGUFSource(path).chat.format is None
    source = GGUFSource(path, named_chat("chatml"))
    tokenizer = load_tokenizer(tmp_path, source.save_tokenizer(tmp_path))
    chat_format = make_chat_format(source, tokenizer)
    assert chat_format is not None
    ids = chat_format.encode([ChatMessage("user", "<|im_end|>")])
    assert [token for token in ids if token in places] == [places[0], places[1], places[0]]


def test_line_breaks_that_are_tokens_stay_text_though_a_template_writes_them(
    trained: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    fields = gguf_fields(trained)
    fields["tokenizer.ggml.tokens"] += ["\n\n", "<turn>"]
    fields["tokenizer.ggml.scores"] += [0.0, 0.0]
    fields["tokenizer.ggml.token_type"] += [4, 4]
    chat = ChatSpec("jinja", "", "{% for m in messages %}\n\n<turn>{{ m.content }}{% endfor %}")
    spec = save_tokenizer(fields.get, tmp_path, lambda token, _: writes(chat, token))
    assert set(spec.special_ids) == {"<s>", "</s>", "<turn>"}
    assert trained.vocab_size() in load_tokenizer(tmp_path, spec).encode("a\n\nb")


def test_runs_of_spaces_that_are_tokens_are_found_in_text(
    trained: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    fields = gguf_fields(trained) | {"tokenizer.ggml.add_space_prefix": False}
    fields["tokenizer.ggml.tokens"] += [" " * 5, " " * 8]
    fields["tokenizer.ggml.scores"] += [-1000.0, -1000.0]
    fields["tokenizer.ggml.token_type"] += [4, 4]
    five, eight = trained.vocab_size(), trained.vocab_size() + 1
    tokenizer = load_tokenizer(tmp_path, save_tokenizer(fields.get, tmp_path))
    text = "llama" + " " * 13 + "mat"
    ids = tokenizer.encode(text)
    assert ids == [*tokenizer.encode("llama"), eight, five, *tokenizer.encode("mat")]
    assert b"".join(tokenizer.token_bytes[token] for token in ids).decode() == text


def test_a_run_of_spaces_that_stands_twice_in_a_file_does_no_harm(
    trained: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    fields = gguf_fields(trained)
    fields["tokenizer.ggml.tokens"] += ["▁" * 5, " " * 5]
    fields["tokenizer.ggml.scores"] += [-1000.0, -1000.0]
    fields["tokenizer.ggml.token_type"] += [1, 4]
    tokenizer = load_tokenizer(tmp_path, save_tokenizer(fields.get, tmp_path))
    assert tokenizer.encode("llama") == trained.encode("llama")


@pytest.mark.parametrize(("name", "strips"), [("Phi-3 mini", True), ("Tiny", False)])
def test_phi_3s_tokens_swallow_white_space(
    trained: sentencepiece.SentencePieceProcessor, tmp_path: Path, name: str, strips: bool
) -> None:
    size = trained.vocab_size()
    file = TinyGGUF(tiny_config(vocab_size=size + 3))
    for key in [key for key in file.fields if key.startswith("tokenizer.ggml")]:
        del file.fields[key]
    file.fields |= gguf_fields(trained) | {"general.name": name}
    file.fields["tokenizer.ggml.tokens"] += ["<|user|>", "<|assistant|>", "<|end|>"]
    file.fields["tokenizer.ggml.scores"] += [0.0, 0.0, 0.0]
    file.fields["tokenizer.ggml.token_type"] += [3, 3, 3]
    file.fields["tokenizer.chat_template"] = classic_templates()["phi-3"]
    source = GGUFSource(file.save(tmp_path / "tiny.gguf"))
    assert source.stop_ids == (size + 2,)
    tokenizer = load_tokenizer(tmp_path, source.save_tokenizer(tmp_path))
    chat_format = make_chat_format(source, tokenizer)
    assert chat_format is not None
    ids = chat_format.encode([ChatMessage("user", "mat")])
    between = tokenizer.encode("mat") if strips else tokenizer.encode("\nmat")
    assert ids[: len(between) + 2] == [size, *between, size + 2]


@pytest.mark.parametrize("name", sorted(gguf_tokenizer.SPLITS))
def test_no_text_becomes_a_control_token_however_words_are_split(tmp_path: Path, name: str) -> None:
    file = TinyGGUF()
    file.fields["tokenizer.ggml.pre"] = name
    spec = GGUFSource(file.save(tmp_path / "tiny.gguf")).save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, spec)
    control = set(spec.special_ids.values())
    for written in spec.special_ids:
        for text in (written, f"a{written}b", f" {written}\n", written.upper(), written * 3, written[:-1]):
            ids = tokenizer.encode(text)
            assert control.isdisjoint(ids)
            assert b"".join(tokenizer.token_bytes[token] for token in ids).decode() == text
