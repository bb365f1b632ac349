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
from engine.errors import ModelFormatError
from engine.opening import open_folder
from engine.text.chat_choice import classic_templates
from engine.text.detokenizer import StreamDecoder
from engine.text.prompt import make_chat_format
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.types import ChatMessage
from tests.engine import chat_templates
from tests.engine.tiny_fast_llama import SCHEMES, fast_llama
from tests.engine.tiny_hf import TinyHuggingFace, with_sentencepiece
from tests.engine.tiny_model import CONTROL_TOKENS, tiny_config, tiny_tokenizer
from tests.engine.tiny_sentencepiece import tiny_model_bytes, tiny_processor
from tests.engine.tokenizer_kinds import KINDS

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
    assert chat_format.stop_ids == {0, 2, 385}  # `<|endoftext|>` ends a text in every model that has it


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


def test_llama_2_keeps_metas_own_path(tmp_path: Path) -> None:
    model = with_sentencepiece()
    special = {str(i): {"content": text, "special": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))}
    settings_of = {"added_tokens_decoder": special, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    model.files["tokenizer_config.json"] = json.dumps(settings_of).encode()
    model.files["tokenizer.json"] = fast_llama("first").to_str().encode()
    model.files["chat_template.jinja"] = chat_templates.LLAMA_2.encode()
    manifest, tokenizer = converted(model, tmp_path)
    assert manifest.chat.format == "llama-2"
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


def folder_of(kind: str, template: str, control: tuple[str, ...] = (), num_more: int = 0) -> TinyHuggingFace:
    """Return a folder with a tokenizer of this kind and a template, with `num_more` rows than tokens."""
    library = KINDS[kind].tokenizer(control)
    model = TinyHuggingFace(tiny_config(vocab_size=library.get_vocab_size() + num_more))
    model.files = KINDS[kind].folder(template, control)
    end = library.token_to_id(KINDS[kind].eos_token)
    model.config |= {"bos_token_id": None, "eos_token_id": end}
    return model


def test_the_newer_file_comes_first(tmp_path: Path) -> None:
    """A space behind each control token is what the older file would put there."""
    model = folder_of("mistral", classic_templates()["mistral-v3"], ("[INST]", "[/INST]"))
    assert "tokenizer.model" in model.files
    manifest, tokenizer = converted(model, tmp_path)
    assert manifest.tokenizer.file == "tokenizer.json"
    chat_format = make_chat_format(manifest, tokenizer)
    assert chat_format is not None
    size = tiny_processor().vocab_size()
    hi = KINDS["mistral"].tokenizer().encode("</s> Hi", add_special_tokens=False).ids[1:]
    assert chat_format.encode([ChatMessage("user", "Hi")]) == [1, size, *hi, size + 1]


def test_tokens_added_by_a_newer_program_are_not_missed(tmp_path: Path) -> None:
    model = folder_of("always", chat_templates.CHATML, ("<|im_start|>", "<|im_end|>"))
    model.files["tokenizer.model"] = tiny_model_bytes()
    manifest, tokenizer = converted(model, tmp_path)
    size = tiny_processor().vocab_size()
    assert {"<|im_start|>": size, "<|im_end|>": size + 1}.items() <= dict(tokenizer.special_ids).items()
    assert manifest.chat.format == "chatml"
    assert size in manifest.stop_ids or manifest.eos_id != size  # `<|im_end|>` ends a turn
    assert size + 1 in manifest.stop_ids
    with_metas = folder_of("always", chat_templates.LLAMA_2, ("<tool>",))
    with_metas.files["tokenizer.model"] = tiny_model_bytes()
    manifest, tokenizer = converted(with_metas, tmp_path / "metas")
    assert (manifest.tokenizer.kind, tokenizer.special_ids["<tool>"]) == ("sentencepiece", size)


def test_without_the_newer_file_the_settings_say_where_spaces_go(tmp_path: Path) -> None:
    spaced = {}
    for legacy in (True, False, None):
        model = with_sentencepiece()
        settings_of = {} if legacy is None else {"legacy": legacy}
        model.files["tokenizer_config.json"] = json.dumps(settings_of).encode()
        model.files["chat_template.jinja"] = chat_templates.ZEPHYR.encode()
        _, tokenizer = converted(model, tmp_path / str(legacy))
        spaced[legacy] = tokenizer.encode_inside("the")
        assert tokenizer.encode("the") == tiny_processor().encode("the")
    assert spaced[True] == spaced[None] == tiny_processor().encode("the")
    assert spelled(tokenizer, spaced[False]) == "the"
    assert spelled(tokenizer, spaced[True]) == " the"


TIKTOKEN = b"IQ== 0\nIg== 1\n"


def test_metas_newer_format_beside_is_passed_over_and_alone_is_told(tmp_path: Path) -> None:
    model = folder_of(
        "llama-3", classic_templates()["llama-3"], ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    )
    model.files["tokenizer.model"] = TIKTOKEN
    manifest, tokenizer = converted(model, tmp_path)
    assert manifest.tokenizer.kind == "bpe"
    assert tokenizer.special_ids["<|eot_id|>"] in {manifest.eos_id, *manifest.stop_ids}
    del model.files["tokenizer.json"]
    with pytest.raises(ModelFormatError, match=r"tiktoken file: get the tokenizer\.json"):
        open_source(model.save(tmp_path / "alone"))


def test_control_tokens_swallow_white_space_where_the_folder_says_so(tmp_path: Path) -> None:
    model = folder_of("phi-3", classic_templates()["phi-3"], ("<|user|>", "<|end|>", "<|assistant|>"))
    raw = json.loads(model.files["tokenizer.json"])
    (end,) = (token for token in raw["added_tokens"] if token["content"] == "<|end|>")
    end["lstrip"] = True
    model.files["tokenizer.json"] = json.dumps(raw).encode()
    manifest, tokenizer = converted(model, tmp_path)
    assert (manifest.tokenizer.lstrip, manifest.tokenizer.rstrip) == (
        ("<|end|>",),
        ("<|user|>", "<|end|>", "<|assistant|>"),
    )
    chat_format = make_chat_format(manifest, tokenizer)
    assert chat_format is not None
    ids = chat_format.encode([ChatMessage("user", " \n Hi \u00a0\t")])
    special = tokenizer.special_ids
    hi = tokenizer.encode_inside("Hi")
    assert ids == [special["<|user|>"], *hi, special["<|end|>"], special["<|assistant|>"]]


def test_line_breaks_that_are_tokens_stay_text_though_a_template_writes_them(tmp_path: Path) -> None:
    model = folder_of("gemma", "\n\n{% for m in messages %}<start_of_turn>{{ m.content }}{% endfor %}")
    _, tokenizer = converted(model, tmp_path)
    assert set(tokenizer.special_ids) == {"<bos>", "<eos>"}
    assert tokenizer.encode("a\n\nb")[1] == KINDS["gemma"].tokenizer().token_to_id("\n\n")


def test_tokens_beyond_the_embeddings_are_left_out(tmp_path: Path) -> None:
    model = folder_of("gemma", "", ("<image>",))
    model.config["vocab_size"] -= 1
    size = model.config["vocab_size"]
    for name in ("model.embed_tokens.weight",):
        model.tensors[name] = model.tensors[name][:size]
    image = max(KINDS["gemma"].tokenizer(("<image>",)).get_vocab().values())
    assert image == size
    _, tokenizer = converted(model, tmp_path)
    assert tokenizer.vocab_size == size
    assert image not in tokenizer.encode("<image> and <table>")


def test_a_vocabulary_may_be_padded_by_an_eighth_and_have_gaps(tmp_path: Path) -> None:
    _, tokenizer = converted(folder_of("qwen2", "", num_more=40), tmp_path)
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size
    model = folder_of("qwen2", "", num_more=40)
    raw = json.loads(model.files["tokenizer.json"])
    raw["added_tokens"].append(
        {**raw["added_tokens"][0], "content": "<|far|>", "id": tokenizer.vocab_size + 20}
    )
    model.files["tokenizer.json"] = json.dumps(raw).encode()
    _, far = converted(model, tmp_path / "far")
    assert far.special_ids["<|far|>"] == tokenizer.vocab_size + 20
    assert len(far.token_bytes) == tokenizer.vocab_size + 21


def test_ends_that_are_no_tokens_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = TinyHuggingFace()
    model.files["generation_config.json"] = b'{"eos_token_id": [0, 100007, 2]}'
    assert open_source(model.save(tmp_path / "source")).stop_ids == (0,)
    assert "eos_token_id 100007 is outside its vocabulary. It is left out." in caplog.text


ADVICE: dict[str, tuple[dict[str, object], dict[str, float]]] = {
    "all of it": (
        {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05},
        {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05},
    ),
    "no sampling": ({"do_sample": False, "temperature": 0.6}, {}),
    "out of range": (
        {"temperature": 9, "top_p": 0, "top_k": "50", "min_p": None, "repetition_penalty": True},
        {},
    ),
    "nothing": ({"bos_token_id": 1}, {}),
}


@pytest.mark.parametrize(("generation", "expected"), ADVICE.values(), ids=ADVICE)
def test_the_authors_advice_is_kept(
    tmp_path: Path, generation: dict[str, object], expected: dict[str, float]
) -> None:
    model = TinyHuggingFace()
    model.files["generation_config.json"] = json.dumps(generation).encode()
    manifest, _ = converted(model, tmp_path)
    assert manifest.sampling == expected
    assert open_folder(tmp_path / "model").sampling == expected
