"""Bad Hugging Face folders: each is one sentence and exit status 1, and nothing is left behind."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.__main__ import main
from engine.convert.safetensors import SafetensorsFile
from engine.errors import ModelFormatError
from tests.engine.tiny_hf import TinyHuggingFace, with_sentencepiece
from tests.engine.tiny_sentencepiece import tiny_model_bytes

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 134\n"
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"


def refusal(source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Convert `source` beside itself; return what was said after checking that nothing was written."""
    before = sorted(source.parent.iterdir())
    status = main(["convert", str(source), str(source.parent / "model"), "--precision", "int8"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 1
    assert said.startswith("llamacord: ")
    assert said.endswith(".")
    assert sorted(source.parent.iterdir()) == before
    return said


def set_key(key: str, value: object) -> Callable[[TinyHuggingFace], object]:
    return lambda model: model.config.update({key: value})


def rope(**values: object) -> Callable[[TinyHuggingFace], object]:
    return set_key("rope_parameters", values)


def old_rope(**values: object) -> Callable[[TinyHuggingFace], object]:
    def change(model: TinyHuggingFace) -> None:
        del model.config["rope_parameters"]
        model.config["rope_scaling"] = values

    return change


def drop_tensor(name: str) -> Callable[[TinyHuggingFace], object]:
    return lambda model: model.tensors.pop(name)


def add_tensor(name: str, *shape: int, dtype: type = np.float32) -> Callable[[TinyHuggingFace], object]:
    return lambda model: model.tensors.update({name: np.ones(shape, dtype)})


def set_file(name: str, content: bytes | object) -> Callable[[TinyHuggingFace], object]:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda model: model.files.update({name: data})


def edit_tokenizer(edit: Callable[[dict[str, Any]], object]) -> Callable[[TinyHuggingFace], object]:
    def change(model: TinyHuggingFace) -> None:
        raw = json.loads(model.files["tokenizer.json"])
        edit(raw)
        model.files["tokenizer.json"] = json.dumps(raw).encode()

    return change


def older_alone(content: bytes) -> Callable[[TinyHuggingFace], object]:
    """Put a `tokenizer.model` in the place of the `tokenizer.json`."""

    def change(model: TinyHuggingFace) -> None:
        del model.files["tokenizer.json"]
        model.files["tokenizer.model"] = content

    return change


def added(token_id: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, "special": True, **flags}


SPOILS: dict[str, tuple[Callable[[TinyHuggingFace], object], str]] = {
    "another architecture": (
        set_key("model_type", "bert"),
        "of the type 'bert', which does not run here. These do: Llama 2 and 3, Mistral, Qwen 2",
    ),
    "experts by name": (
        set_key("model_type", "qwen3_moe"),
        "'qwen3_moe', a mixture of experts, which does not run here. These do: Qwen3 4B, 8B and 14B.",
    ),
    "a hybrid by name": (
        set_key("model_type", "gemma3n"),
        "'gemma3n', not a plain decoder, which does not run here. These do: Gemma 3 1B to 27B.",
    ),
    "no architecture": (lambda model: model.config.pop("model_type"), "type None"),
    "biases that are missing": (
        set_key("attention_bias", True),
        "has no tensor model.layers.0.self_attn",
    ),
    "biases of the mlp": (set_key("mlp_bias", True), "has no tensor model.layers.0.mlp.gate_proj.bias"),
    "another activation": (set_key("hidden_act", "relu"), "activation is 'relu'"),
    "a model that looks ahead": (set_key("use_bidirectional_attention", True), "not made to write text"),
    "another family's norms": (
        set_key("model_type", "qwen3"),
        "no tensor model.layers.0.self_attn.q_norm",
    ),
    "a window of 0": (
        lambda model: model.config.update(model_type="mistral", sliding_window=-1),
        "sliding_window must be a whole number above 0, not -1",
    ),
    "a window in words": (
        lambda model: model.config.update(model_type="mistral", sliding_window="8"),
        "sliding_window must be a whole number above 0, not '8'",
    ),
    "layers of unknown kinds": (
        lambda model: model.config.update(
            model_type="ministral", sliding_window=8, layer_types=["chunked_attention"] * 3
        ),
        "layer_types do not describe its 3 layers as known here",
    ),
    "too few kinds of layers": (
        lambda model: model.config.update(
            model_type="ministral", sliding_window=8, layer_types=["full_attention"]
        ),
        "layer_types do not describe its 3 layers as known here",
    ),
    "layers of SmolLM3": (
        lambda model: model.config.update(model_type="smollm3", no_rope_layers=[1, 0]),
        "no_rope_layers do not describe its 3 layers",
    ),
    "logits divided by 0": (
        lambda model: model.config.update(model_type="granite", logits_scaling=0),
        "scales and soft caps must be numbers above 0",
    ),
    "a soft cap below 0": (
        lambda model: model.config.update(model_type="gemma2", final_logit_softcapping=-1.0),
        "scales and soft caps must be numbers above 0",
    ),
    "quantised": (set_key("quantization_config", {"bits": 4}), "quantised already"),
    "dynamic rope without a factor": (rope(rope_type="dynamic"), "factor must be a number, not None"),
    "llama 3's rope without its numbers": (
        rope(rope_type="llama3", factor=8.0),
        "low_freq_factor must be a number, not None",
    ),
    "llama 3's rope over nothing": (
        rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=1.0),
        "rope scaling must be of numbers above 0",
    ),
    "yarn by nothing": (old_rope(type="yarn", factor=-2.0), "rope scaling must be of numbers above 0"),
    "long rope without factors": (rope(rope_type="longrope"), "short_factor must be a list of numbers"),
    "long rope of another size": (
        rope(rope_type="longrope", short_factor=[1.0], long_factor=[2.0], factor=2.0),
        "rope factors are no 8 numbers above 0",
    ),
    "a rope of images": (rope(rope_type="proportional"), "rope scaling of the type 'proportional'"),
    "rope that is no object": (set_key("rope_parameters", "linear"), "rope settings are damaged"),
    "a rope factor of 0": (rope(rope_type="linear", factor=0.0), "rope factor"),
    "a rope factor of text": (rope(rope_type="linear", factor="2"), "factor must be a number, not '2'"),
    "partial rope": (set_key("partial_rotary_factor", 0.5), "only a part of each head"),
    "a part that is no number": (set_key("partial_rotary_factor", float("nan")), "must be a number, not nan"),
    "an endless context": (
        rope(rope_type="yarn", factor=1e308, original_max_position_embeddings=8192),
        "rope scaling must be of numbers above 0",
    ),
    "a ramp from below 0": (
        rope(rope_type="yarn", factor=2.0, beta_fast=-1),
        "description is damaged",
    ),
    "an activation that is a list": (set_key("hidden_act", ["silu"]), "description is damaged"),
    "kinds that are no text": (
        lambda model: model.config.update(model_type="ministral", sliding_window=8, layer_types=[{}] * 3),
        "description is damaged",
    ),
    "a soft cap in words": (
        lambda model: model.config.update(model_type="gemma2", attn_logit_softcapping="much"),
        "description is damaged",
    ),
    "no hidden size": (lambda model: model.config.pop("hidden_size"), "hidden_size must be a whole number"),
    "layers in words": (set_key("num_hidden_layers", "many"), "num_hidden_layers must be a whole number"),
    "true layers": (set_key("num_hidden_layers", True), "must be a whole number above 0, not True"),
    "no heads": (set_key("num_attention_heads", 0), "num_attention_heads must be a whole number above 0"),
    "a missing layer": (set_key("num_hidden_layers", 4), "has no tensor model.layers.3"),
    "a layer too many": (set_key("num_hidden_layers", 2), "has the tensor model.layers.2"),
    "no end of layers": (set_key("num_hidden_layers", 10**12), "has 1000000000000 layers: it is damaged"),
    "another width": (set_key("intermediate_size", 64), "has the shape"),
    "another vocabulary": (set_key("vocab_size", 400), "the shape (384, 64) instead of (400, 64)"),
    "a tokenizer too large": (set_key("vocab_size", 383), "384 tokens for 383 embeddings"),
    "a tokenizer too small": (set_key("vocab_size", 1000), "384 tokens for 1000 embeddings"),
    "an end outside": (set_key("eos_token_id", 384), "eos_token_id 384 is outside its vocabulary"),
    "no end": (set_key("eos_token_id", None), "names no token that ends a text"),
    "an end in words": (set_key("eos_token_id", [2, "x"]), "eos_token_id 'x' is outside"),
    "a missing tensor": (
        drop_tensor("model.layers.1.mlp.up_proj.weight"),
        "has no tensor model.layers.1.mlp",
    ),
    "no embeddings": (drop_tensor("model.embed_tokens.weight"), "has no tensor model.embed_tokens.weight"),
    "a head that is missing": (set_key("tie_word_embeddings", False), "has no tensor lm_head.weight"),
    "a bias tensor": (add_tensor("model.layers.0.self_attn.q_proj.bias", 64), "self_attn.q_proj.bias, which"),
    "experts": (add_tensor("model.layers.0.mlp.gate.weight", 8, 64), "mlp.gate.weight, which is not supp"),
    "an adapter": (add_tensor("base_model.lora_A.weight", 8, 64), "base_model.lora_A.weight, which is not"),
    "whole numbers": (
        add_tensor("model.norm.weight", 64, dtype=np.int8),
        "stores model.norm.weight as I8, which is not supported",
    ),
    "no tokenizer": (lambda model: model.files.clear(), "neither a tokenizer.model nor a tokenizer.json"),
    "a tokenizer pointer": (set_file("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
    "a model pointer": (
        older_alone(POINTER),
        "tokenizer.model is a Git LFS pointer",
    ),
    "half a tokenizer": (set_file("tokenizer.json", b'{"model": '), "tokenizer.json is not valid JSON"),
    "an empty tokenizer": (set_file("tokenizer.json", {}), "damaged tokenizer"),
    "two tokens of one id": (
        edit_tokenizer(lambda raw: raw["added_tokens"].append(added(0, "<twin>"))),
        "has a damaged tokenizer (two of its tokens have the same id)",
    ),
    "a word tokenizer": (
        edit_tokenizer(lambda raw: raw["model"].update(type="WordPiece")),
        "WordPiece tokenizer; only BPE",
    ),
    "an unknown merge": (
        edit_tokenizer(lambda raw: raw["model"].update(merges=["qq zz"])),
        "not a readable tok",
    ),
    "no way to text": (
        edit_tokenizer(lambda raw: raw.update(decoder=None, pre_tokenizer=None)),
        "in no way known here how tokens become text",
    ),
    "a control token that text becomes": (
        edit_tokenizer(lambda raw: raw["added_tokens"].append(added(raw["model"]["vocab"]["a"], "a"))),
        "makes a control token of the plain text",
    ),
    "a damaged model": (older_alone(b"\xff\xff\xff"), "not a readable SentencePiece model"),
    "an empty model": (older_alone(b""), "not a readable SentencePiece model"),
    "another model": (older_alone(tiny_model_bytes()), "tokens for 384 embeddings"),
    "a broken template": (
        set_file("chat_template.jinja", b"{% for message in messages %}"),
        "chat template cannot be read: Unexpected end of template",
    ),
    "a template that refuses": (
        set_file("chat_template.jinja", b"{{ raise_exception('Not a chat model.') }}"),
        "chat template fails: Not a chat model. Name another format with --chat-template, or none.",
    ),
    "a template that forgets": (
        set_file("tokenizer_config.json", {"chat_template": "{{ messages[0].content }}"}),
        "leaves messages out",
    ),
    "settings that are no object": (set_file("tokenizer_config.json", [1]), "is not a JSON object"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILS.values(), ids=SPOILS)
def test_a_spoiled_folder_is_one_sentence_and_leaves_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[TinyHuggingFace], object],
    message: str,
) -> None:
    model = TinyHuggingFace()
    spoil(model)
    assert message in refusal(model.save(tmp_path / "source"), capsys)


def truncate(name: str, share: float) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * share))


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def header(described: object, data: bytes = b"") -> bytes:
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"norm": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


LIES: dict[str, bytes] = {
    "empty": b"",
    "half a length": b"\x10\0\0",
    "a length beyond the file": struct.pack("<Q", 2**62) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"abcd",
    "JSON too deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a list": header([1, 2]),
    "an end beyond the data": header(entry(shape=[200], data_offsets=[0, 800]), b"\0" * 8),
    "an end before the begin": header(entry(data_offsets=[8, 0]), b"\0" * 8),
    "a begin before the data": header(entry(data_offsets=[-8, 0]), b"\0" * 8),
    "a shape of another size": header(entry(shape=[3]), b"\0" * 8),
    "a negative shape": header(entry(shape=[-1, -2]), b"\0" * 8),
    "a shape in words": header(entry(shape=["2"]), b"\0" * 8),
    "a shape of shapes": header(entry(shape=[[2]]), b"\0" * 8),
    "one offset": header(entry(data_offsets=[0]), b"\0" * 8),
    "no type": header({"norm": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
    "a type that is no text": header(entry(dtype=["F32"]), b"\0" * 8),
    "a pickle": b"\x80\x02}q\x00." + b"\0" * 100,
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_lying_headers_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    folder = TinyHuggingFace().save(tmp_path / "source")
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors is not a readable safetensors file; it may be" in refusal(folder, capsys)


def indexed(**places: object) -> Callable[[Path], object]:
    return write(INDEX, json.dumps({"weight_map": places}).encode())


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is not a model: it has no config.json"),
    "half a config": (truncate("config.json", 0.5), "config.json is not valid JSON"),
    "a config pointer": (write("config.json", POINTER), "config.json is a Git LFS pointer"),
    "a shard pointer": (
        write(SHARD, POINTER),
        f'{SHARD} is a Git LFS pointer, not the file itself. Run "git lfs',
    ),
    "a missing shard": (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing from"),
    "half a shard": (
        truncate(SHARD, 0.5),
        f"{SHARD} is not a readable safetensors file; it may be truncated",
    ),
    "a byte too few": (truncate(SHARD, 0.999999), f"{SHARD} is not a readable safetensors file"),
    "half an index": (truncate(INDEX, 0.5), f"{INDEX} is not valid JSON"),
    "an empty index": (write(INDEX, b"{}"), "does not say which file holds which tensor"),
    "an index of lists": (indexed(a=["b"]), "which is missing|is missing from"),
    "a path upwards": (
        indexed(a="../secret.safetensors"),
        "'../secret.safetensors', which is not a plain file",
    ),
    "a path from the root": (indexed(a="/etc/passwd"), "'/etc/passwd', which is not a plain file name"),
    "a path downwards": (
        indexed(a="sub/x.safetensors"),
        "'sub/x.safetensors', which is not a plain file name",
    ),
    "a path of Windows": (indexed(a="..\\secret"), "which is not a plain file name"),
    "dots": (indexed(a=".."), "names the file '..', which is not a plain file name"),
    "a name too long": (indexed(a="x" * 300), "cannot be read: File name too long"),
    "the same tensors twice": (
        lambda folder: (
            (folder / INDEX).rename(folder / "a.json")
            and (folder / "z.safetensors").write_bytes((folder / SHARD).read_bytes())
        ),
        "twice",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], message: str
) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    folder = TinyHuggingFace(num_shards=2).save(tmp_path / "source")
    damage(folder)
    said = refusal(folder, capsys)
    assert any(part in said for part in message.split("|"))


def test_a_pickle_is_never_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = TinyHuggingFace().save(tmp_path / "source")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refusal(folder, capsys)
    assert "has no safetensors files, only pytorch_model.bin, a pickle" in said


def test_a_tokenizer_with_a_token_far_beyond_the_others_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_sentencepiece()
    model.files["added_tokens.json"] = json.dumps({"<far>": 10**9}).encode()
    assert "the token '<far>' has the id 1000000000" in refusal(model.save(tmp_path / "source"), capsys)


def test_a_destination_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = TinyHuggingFace().save(tmp_path / "source")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes").write_text("mine")
    assert "already exists" in refusal(source, capsys)
    assert (tmp_path / "model" / "notes").read_text() == "mine"


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_place_without_a_model_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert name in refusal(tmp_path / name, capsys)


def test_a_gguf_pointer_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.gguf").write_bytes(POINTER)
    assert 'Run "git lfs pull".' in refusal(tmp_path / "model.gguf", capsys)


def test_a_file_that_shrinks_while_it_is_read_is_said_so(tmp_path: Path) -> None:
    path = TinyHuggingFace().save(tmp_path / "source") / "model.safetensors"
    file = SafetensorsFile(path)
    truncate(path.name, 0.1)(path.parent)
    with pytest.raises(ModelFormatError, match="was changed while it was read"):
        [file.read(name) for name in file.names]
