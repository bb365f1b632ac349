"""The tokenizers and chat templates of Hugging Face folders, all the way to ids and text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from engine.convert.converter import convert, open_source
from engine.describing.architecture import Precision
from engine.describing.manifest import Manifest, load_manifest
from engine.text.detokenizer import StreamDecoder
from engine.text.prompt import make_chat_format
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.types import ChatMessage
from tests.engine import chat_templates
from tests.engine.tiny_fast_llama import SCHEMES, fast_llama
from tests.engine.tiny_hf import TinyHuggingFace, with_sentencepiece
from tests.engine.tiny_model import CONTROL_TOKENS, tiny_config, tiny_tokenizer
from tests.engine.tiny_sentencepiece import tiny_model_bytes, tiny_processor

DIALOG = [ChatMessage("system", "Be."), ChatMessage("user", "Hi <|im_end|>")]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=30)
FEW = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def converted(model: TinyHuggingFace, tmp_path: Path) -> tuple[Manifest, Tokenizer]:
    convert(open_source(model.save(tmp_path / "source")), tmp_path / "model", Precision.INT8)
    manifest = load_manifest(tmp_path / "model")
    return manifest, load_tokenizer(tmp_path / "model", manifest.tokenizer)


def grown(model: TinyHuggingFace, num_rows: int) -> TinyHuggingFace:
    """Return the same folder with more embeddings."""
    larger = TinyHuggingFace(tiny_config(vocab_size=num_rows))
    larger.files = model.files
    return larger


def spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    return b"".join(tokenizer.token_bytes[token] for token in ids).decode()


def test_a_byte_level_tokenizer_is_kept_and_its_control_tokens_are_closed(tmp_path: Path) -> None:
    manifest, tokenizer = converted(TinyHuggingFace(), tmp_path)
    assert manifest.tokenizer.kind == "bpe"
    assert dict(tokenizer.special_ids) == {text: i for i, text in enumerate(CONTROL_TOKENS)}
    text = "Hello <|im_start|> 你好 🙂"
    assert tokenizer.encode(text) == tiny_tokenizer().encode(text).ids
    assert spelled(tokenizer, tokenizer.encode(text)) == text


def test_added_tokens_that_are_not_special_are_found_unless_the_template_writes_them(tmp_path: Path) -> None:
    raw = json.loads(TinyHuggingFace().files["tokenizer.json"])
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    for index, text in ((384, "<tool ü>"), (385, "<|turn|>"), (386, "<|last|>")):
        raw["added_tokens"].append({"id": index, "content": text, **flags})
    raw |= {"truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}}
    model = grown(TinyHuggingFace(), 400)
    model.files["tokenizer.json"] = json.dumps(raw).encode()
    model.files["chat_template.jinja"] = b"{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}<|turn|>"
    manifest, tokenizer = converted(model, tmp_path)
    ids = tokenizer.encode("a<tool ü>b<|turn|>c<|last|>")
    assert (384 in ids, 385 in ids, 386 in ids) == (True, False, True)
    assert spelled(tokenizer, ids) == "a<tool ü>b<|turn|>c<|last|>"
    assert len(tokenizer.token_bytes) == 387
    chat_format = make_chat_format(manifest, tokenizer)
    assert chat_format is not None
    assert chat_format.encode([ChatMessage("user", "<|turn|>")]) == [385, *tokenizer.encode("<|turn|>"), 385]
    assert chat_format.stop_ids == {2, 385}


@pytest.fixture(scope="module", params=SCHEMES)
def fast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    model = TinyHuggingFace(tiny_config(vocab_size=tiny_processor().vocab_size()))
    model.files = {"tokenizer.json": fast_llama(request.param).to_str().encode()}
    manifest, tokenizer = converted(model, tmp_path_factory.mktemp("fast"))
    assert manifest.tokenizer.kind == "bpe-metaspace"
    assert set(manifest.tokenizer.special_ids) == {"<unk>", "<s>", "</s>"}
    return tokenizer


@FEW
@given(text=TEXTS)
def test_a_llama_tokenizer_json_is_read_like_sentencepiece(fast: Tokenizer, text: str) -> None:
    ids = fast.encode(text)
    if not text.startswith(" "):  # tokenizers adds no second space
        assert ids == tiny_processor().encode(text)
    assert fast.opening_space_ids
    assert not set(ids) & {0, 1, 2}
    decoder = StreamDecoder(fast.token_bytes, opening_space_ids=fast.opening_space_ids)
    shown = "".join(decoder.push(token) for token in ids) + decoder.finish()
    assert shown == (text if not text.startswith(" ") else shown)
    assert shown.strip(" ") == text.strip(" ")


def test_a_sentencepiece_model_stays_as_it_is(tmp_path: Path) -> None:
    model = with_sentencepiece()
    special = {str(i): {"content": text, "special": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))}
    settings_of = {"added_tokens_decoder": special, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    model.files["tokenizer_config.json"] = json.dumps(settings_of).encode()
    model.files["tokenizer.json"] = b"not read"
    manifest, tokenizer = converted(model, tmp_path)
    assert (tmp_path / "model" / "tokenizer.model").read_bytes() == tiny_model_bytes()
    assert dict(tokenizer.special_ids) == {"<s>": 1, "</s>": 2}
    assert (manifest.bos_id, manifest.eos_id, manifest.stop_ids) == (1, 2, ())


@pytest.mark.parametrize("told_in", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_added_to_a_sentencepiece_model_are_known(tmp_path: Path, told_in: str) -> None:
    size = tiny_processor().vocab_size()
    words = {"<|im_start|>": size, "<|im_end|>": size + 1, "<tool>": size + 3}
    model = grown(with_sentencepiece(), size + 8)
    settings_of: dict[str, Any] = {"eos_token": "<|im_end|>", "chat_template": chat_templates.CHATML}
    if told_in == "added_tokens.json":
        model.files[told_in] = json.dumps(words).encode()
    else:
        settings_of["added_tokens_decoder"] = {
            str(index): {"content": text, "special": text != "<tool>"} for text, index in words.items()
        }
    model.files["tokenizer_config.json"] = json.dumps(settings_of).encode()
    manifest, tokenizer = converted(model, tmp_path)
    assert (manifest.eos_id, manifest.stop_ids) == (size + 1, (2,))
    assert set(tokenizer.special_ids) == {"<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    ids = tokenizer.encode("use <tool> <|im_end|>")
    assert size + 3 in ids
    assert size + 1 not in ids
    assert spelled(tokenizer, ids) == " use <tool> <|im_end|>"
    assert tokenizer.token_bytes[size : size + 4] == [b"", b"", b"", b"<tool>"]
    chat_format = make_chat_format(manifest, tokenizer)
    assert chat_format is not None
    assert [token for token in chat_format.encode(DIALOG) if token >= size] == [size, size + 1] * 2 + [size]
    assert chat_format.stop_ids == {2, size + 1}


def test_a_piece_that_the_template_writes_is_control_though_the_model_calls_it_text(tmp_path: Path) -> None:
    model = sentencepiece_model.ModelProto.FromString(tiny_model_bytes())
    size = len(model.pieces)
    for text in ("<|im_start|>", "<|im_end|>", "<tool>"):
        model.pieces.add(piece=text, score=0.0, type=4)
    source = grown(with_sentencepiece(), size + 3)
    source.files["tokenizer.model"] = model.SerializeToString()
    source.files["chat_template.jinja"] = chat_templates.CHATML.encode()
    _, tokenizer = converted(source, tmp_path)
    assert set(tokenizer.special_ids) == {"<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    ids = tokenizer.encode("<|im_start|><tool>")
    assert (size in ids, size + 2 in ids) == (False, True)


@pytest.mark.parametrize(("bos_id", "expected"), [(None, 2), (0, 0)])
def test_a_model_may_have_no_token_that_begins_a_text(
    tmp_path: Path, bos_id: int | None, expected: int
) -> None:
    model = TinyHuggingFace()
    model.config["bos_token_id"] = bos_id
    assert open_source(model.save(tmp_path / "source")).bos_id == expected


TEMPLATES: dict[str, dict[str, object]] = {
    "in the settings": {"tokenizer_config.json": {"chat_template": chat_templates.CHATML}},
    "one of several": {
        "tokenizer_config.json": {
            "chat_template": [
                {"name": "tool_use", "template": "[INST]"},
                {"name": "default", "template": chat_templates.CHATML},
            ]
        }
    },
    "in a JSON file": {"chat_template.json": {"chat_template": chat_templates.CHATML}},
    "in a file of its own": {
        "chat_template.jinja": chat_templates.CHATML,
        "tokenizer_config.json": {"chat_template": "[INST]"},
    },
}


@pytest.mark.parametrize("files", TEMPLATES.values(), ids=TEMPLATES)
def test_the_chat_template_is_found(tmp_path: Path, files: dict[str, object]) -> None:
    model = TinyHuggingFace()
    for name, content in files.items():
        model.files[name] = (content if isinstance(content, str) else json.dumps(content)).encode()
    assert open_source(model.save(tmp_path / "source")).chat.format == "chatml"


def test_another_template_is_kept_and_used(tmp_path: Path) -> None:
    model = TinyHuggingFace()
    model.files["chat_template.jinja"] = chat_templates.TRIMMING.encode()
    manifest, tokenizer = converted(model, tmp_path)
    assert (manifest.chat.format, manifest.chat.template) == ("jinja", chat_templates.TRIMMING)
    chat_format = make_chat_format(manifest, tokenizer)
    assert chat_format is not None
    ids = chat_format.encode(DIALOG)
    assert [token for token in ids if token < 3] == [1, 1, 2, 1, 2, 1]


def test_padded_embeddings_are_no_text(tmp_path: Path) -> None:
    _, tokenizer = converted(grown(TinyHuggingFace(), 400), tmp_path)
    assert tokenizer.vocab_size == 384
