"""Manifests: what is written is read back, and nothing of a damaged or hostile one is believed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.convert.converter import convert
from engine.describing import manifest as manifest_module
from engine.describing.architecture import Precision
from engine.describing.layers import Layer, Norms, RopeScaling, Rotation
from engine.describing.manifest import MANIFEST_FILE, WEIGHTS_FILE, load_manifest, verify_files
from engine.errors import ModelFormatError
from tests.engine.tiny_model import (
    BOS_ID,
    EOS_ID,
    SYSTEM_PROMPT,
    VOCAB_SIZE,
    TinySource,
    make_tiny_model,
    tiny_config,
)

FILES = (WEIGHTS_FILE, "tokenizer.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model", Precision.INT8)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Apply `edit` to the manifest's JSON."""
    path = folder / MANIFEST_FILE
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def test_a_manifest_is_read_back_as_written(folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(folder)
    assert manifest.decoder == tiny_config()
    assert (manifest.name, manifest.precision) == ("tiny", Precision.INT8)
    assert (manifest.bos_id, manifest.eos_id) == (BOS_ID, EOS_ID)
    assert (manifest.chat.format, manifest.chat.default_system_prompt) == ("chatml", SYSTEM_PROMPT)
    assert manifest.tokenizer.special_ids["<|im_end|>"] == EOS_ID
    assert set(manifest.files) == set(FILES)
    verify_files(folder, manifest, full=True)
    manifest.save(tmp_path)
    assert (tmp_path / MANIFEST_FILE).read_bytes() == (folder / MANIFEST_FILE).read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFormatError, match=f"{name} is missing from the model folder"):
        verify_files(folder, load_manifest(folder))


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    os.truncate(folder / name, size - 1)
    with pytest.raises(ModelFormatError, match=f"{name} has {size - 1} bytes instead of {size}"):
        verify_files(folder, load_manifest(folder))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(folder: Path, name: str) -> None:
    flip_a_byte(folder / name)
    with pytest.raises(ModelFormatError, match=f"{name} does not match its checksum"):
        verify_files(folder, load_manifest(folder))


def test_large_files_are_hashed_on_demand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_HASHED_AT_LOAD_BYTES", 1000)
    flip_a_byte(folder / WEIGHTS_FILE)
    verify_files(folder, load_manifest(folder))
    with pytest.raises(ModelFormatError, match="does not match its checksum"):
        verify_files(folder, load_manifest(folder), full=True)


def test_a_folder_in_the_place_of_a_file_is_reported(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    (folder / WEIGHTS_FILE).mkdir()
    with pytest.raises(ModelFormatError, match=WEIGHTS_FILE):
        verify_files(folder, load_manifest(folder))


NO_MODELS: dict[str, tuple[str, str]] = {
    "nothing there": ("nowhere", "There is no model folder"),
    "a file": (f"model/{WEIGHTS_FILE}", "is a file, not a converted model. Convert the model first"),
    "below a file": (f"model/{WEIGHTS_FILE}/model", "There is no model folder"),
    "no manifest": (".", "is not a converted model"),
    "a name too long": ("x" * 300, "cannot be read: File name too long"),
}


@pytest.mark.parametrize(("path", "message"), NO_MODELS.values(), ids=NO_MODELS)
def test_what_is_no_model_folder_is_said_so(folder: Path, path: str, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        load_manifest(folder.parent / path)


NOT_JSON: dict[str, bytes] = {
    "empty": b"",
    "truncated": b'{"format_version": 1, "name": ',
    "binary": b"\xff\xfe\x00\x01",
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_said_so(folder: Path, content: bytes) -> None:
    (folder / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ModelFormatError, match="is not valid JSON"):
        load_manifest(folder)


def test_a_manifest_that_is_a_folder_is_reported(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).mkdir()
    with pytest.raises(ModelFormatError, match="cannot be read: Is a directory"):
        load_manifest(folder)


@pytest.mark.parametrize("content", ["[]", "1", "null", "{}", '{"format_version": 99}'])
def test_what_no_version_or_a_newer_one_wrote_is_said_so(folder: Path, content: str) -> None:
    (folder / MANIFEST_FILE).write_text(content)
    with pytest.raises(ModelFormatError, match=r"a newer one may have converted it\. Update the program, or"):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("source", "origin"),
    [({"file": "a.gguf"}, "a.gguf"), ({"folder": "hf"}, "hf"), ({}, "SOURCE"), ("x", "SOURCE")],
)
def test_a_folder_of_an_older_version_is_refused_with_the_command_that_makes_it_anew(
    folder: Path, source: object, origin: str
) -> None:
    change(folder, lambda raw: raw.update(format_version=2, source=source))
    with pytest.raises(ModelFormatError) as caught:
        load_manifest(folder)
    assert str(caught.value).endswith(f": python -m engine convert {origin} {folder} --precision int8")


def test_what_an_older_version_did_not_know_of_has_its_default(folder: Path) -> None:
    change(folder, lambda raw: raw["decoder"].pop("rope_factor"))
    assert load_manifest(folder).decoder == tiny_config()


def test_what_an_older_version_runs_is_written_as_it_wrote_it(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST_FILE).read_text())
    assert raw["format_version"] == 3
    assert len(raw["decoder"]) == 12
    assert raw["decoder"]["rope_factor"] == 1.0


def test_what_an_older_version_cannot_run_has_a_newer_number(tmp_path: Path) -> None:
    layers = (Layer(window=8), Layer(rotation=Rotation.LOCAL), Layer(rotation=Rotation.NONE))
    scaling = RopeScaling((1.0,) * 8, (2.0,) * 8, original_context=64, magnitude=1.5)
    config = dataclasses.replace(
        tiny_config(), layers=layers, rope_scaling=scaling, norms=Norms.AROUND, logit_softcap=30.0
    )
    convert(TinySource(config), tmp_path / "model", Precision.INT8)
    raw = json.loads((tmp_path / "model" / MANIFEST_FILE).read_text())
    assert raw["format_version"] == 4
    assert load_manifest(tmp_path / "model").decoder == config
    change(tmp_path / "model", lambda raw: raw["decoder"]["layers"].pop())
    with pytest.raises(ModelFormatError, match="not one of 3 layers"):
        load_manifest(tmp_path / "model")


@pytest.mark.parametrize(
    "key", ["precision", "decoder", "tokenizer", "chat", "bos_id", "eos_id", "source", "files", "tensors"]
)
@pytest.mark.parametrize("value", [None, 3.5, [], ["x"], "x", -1, 10**9, True])
def test_wrong_types_are_refused(folder: Path, key: str, value: object) -> None:
    change(folder, lambda raw: raw.update({key: value}))
    with pytest.raises(ModelFormatError, match="is damaged"):
        load_manifest(folder)


@pytest.mark.parametrize("value", [None, 3, "x", [VOCAB_SIZE], [-1], ["2"], [2.0], [True]])
def test_ends_that_are_no_tokens_are_refused(folder: Path, value: object) -> None:
    change(folder, lambda raw: raw.update(stop_ids=value))
    with pytest.raises(ModelFormatError, match="is damaged"):
        load_manifest(folder)


@pytest.mark.parametrize(
    "key", ["name", "precision", "decoder", "tokenizer", "chat", "bos_id", "files", "tensors"]
)
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    change(folder, lambda raw: raw.pop(key))
    with pytest.raises(ModelFormatError, match=f"lacks '{key}'"):
        load_manifest(folder)


BAD_VALUES: dict[str, tuple[str, str, object]] = {
    "text for a number": ("decoder", "num_layers", "3"),
    "a fraction of a layer": ("decoder", "num_layers", 2.5),
    "true for a number": ("decoder", "hidden_size", True),
    "a number for true": ("decoder", "tied_embeddings", 1),
    "no layers": ("decoder", "num_layers", 0),
    "heads that do not share": ("decoder", "num_kv_heads", 3),
    "an odd head size": ("decoder", "head_dim", 17),
    "endless rotary base": ("decoder", "rope_theta", float("inf")),
    "rope scaled to nothing": ("decoder", "rope_factor", 0.0),
    "a template that is no text": ("chat", "template", ["{{ 1 }}"]),
    "no number": ("decoder", "rms_norm_eps", float("nan")),
    "a window below 0": ("decoder", "layers", [{"window": -1}] * 3),
    "a window beyond all numbers": ("decoder", "layers", [{"window": 2**31}] * 3),
    "a layer that is a number": ("decoder", "layers", [1, 2, 3]),
    "norms that nobody knows": ("decoder", "norms", "everywhere"),
    "rotation by nothing": ("decoder", "rope_scaling", {"divisors": [0.0] * 8}),
    "too few divisors": ("decoder", "rope_scaling", {"divisors": [1.0] * 7}),
    "a stretch of no context": ("decoder", "rope_scaling", {"ntk_factor": 2.0}),
    "more rotated than there is": ("decoder", "rope_size", 32),
    "an embedding times 0": ("decoder", "embedding_scale", 0.0),
    "an endless soft cap": ("decoder", "logit_softcap", float("inf")),
    "unknown dimension": ("decoder", "num_experts", 8),
    "a kind that is a number": ("tokenizer", "kind", 1),
    "special ids that are a list": ("tokenizer", "special_ids", ["<s>"]),
    "a special id that is text": ("tokenizer", "special_ids", {"<s>": "1"}),
    "a special id outside the vocabulary": ("tokenizer", "special_ids", {"<s>": VOCAB_SIZE}),
    "a prompt that is a number": ("chat", "default_system_prompt", 5),
    "no system prompt": ("chat", "default_system_prompt", None),
    "a file without a size": ("files", WEIGHTS_FILE, {"sha256": "00"}),
    "a size that is text": ("files", WEIGHTS_FILE, {"size": "1", "sha256": "00"}),
}


@pytest.mark.parametrize(("part", "key", "value"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values_are_refused(folder: Path, part: str, key: str, value: object) -> None:
    change(folder, lambda raw: raw[part].update({key: value}))
    with pytest.raises(ModelFormatError) as caught:
        load_manifest(folder)
    assert str(caught.value).endswith(".")
    assert "__init__" not in str(caught.value)


QKV, NORM, EMBED = "layers.0.qkv", "layers.0.attn_norm", "embed"
BAD_TENSORS: dict[str, tuple[str, dict[str, object]]] = {
    "another shape": (QKV, {"shape": [64, 64]}),
    "a shape that is a number": (QKV, {"shape": 3}),
    "a fraction of a row": (QKV, {"shape": [128.0, 64]}),
    "bits that nothing multiplies": (QKV, {"bits": 3}),
    "blocks that do not fill a row": (QKV, {"block_size": 128}),
    "blocks of nothing": (QKV, {"block_size": 0}),
    "values behind the end": (QKV, {"values": 10**9}),
    "scales behind the end": (QKV, {"scales": 10**9}),
    "zero points behind the end": (QKV, {"zero_points": 10**9}),
    "values before the beginning": (QKV, {"values": -4096}),
    "scales that are true": (QKV, {"scales": True}),
    "an embedding in 4 bits": (EMBED, {"bits": 4}),
    "an embedding with zero points": (EMBED, {"zero_points": 0}),
    "a norm of another length": (NORM, {"shape": [65]}),
    "a norm in another type": (NORM, {"type": "float16"}),
    "a type that nobody knows": (NORM, {"type": "object"}),
    "a norm behind the end": (NORM, {"offset": 10**9}),
    "a norm before the beginning": (NORM, {"offset": -1}),
    "what no tensor has": (NORM, {"location": "/etc/passwd"}),
}


@pytest.mark.parametrize(("name", "fields"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_do_not_fit_the_decoder_are_refused(
    folder: Path, name: str, fields: dict[str, object]
) -> None:
    change(folder, lambda raw: raw["tensors"][name].update(fields))
    with pytest.raises(ModelFormatError, match="is damaged"):
        load_manifest(folder)


def test_a_norm_in_blocks_a_missing_and_a_foreign_tensor_are_refused(folder: Path) -> None:
    def exchange(raw: dict[str, Any]) -> None:
        raw["tensors"][NORM] = raw["tensors"][QKV]

    edits: list[Callable[[dict[str, Any]], object]] = [
        exchange,
        lambda raw: raw["tensors"].pop("final_norm"),
        lambda raw: raw["tensors"].update(head=raw["tensors"]["embed"]),
        lambda raw: raw["decoder"].update(num_layers=4),
        lambda raw: raw["decoder"].update(tied_embeddings=False),
    ]
    whole = (folder / MANIFEST_FILE).read_bytes()
    for edit in edits:
        (folder / MANIFEST_FILE).write_bytes(whole)
        change(folder, edit)
        with pytest.raises(ModelFormatError, match="is damaged"):
            load_manifest(folder)


OUTSIDE = ["../secret", "/etc/passwd", "sub/file", "..", ".", "", "a/", "./tokenizer.json"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_files_outside_the_folder_are_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("secret")
    change(folder, lambda raw: raw["files"].update({name: {"size": 6, "sha256": "00"}}))
    with pytest.raises(ModelFormatError, match="is not a plain file name"):
        load_manifest(folder)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_tokenizer_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    change(folder, lambda raw: raw["tokenizer"].update(file=name))
    with pytest.raises(ModelFormatError, match="is not a plain file name"):
        load_manifest(folder)


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_is_loaded_must_be_described(folder: Path, name: str) -> None:
    change(folder, lambda raw: raw["files"].pop(name))
    with pytest.raises(ModelFormatError, match=f"does not describe {name}"):
        load_manifest(folder)
