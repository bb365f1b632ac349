"""LoRA adapters: merged as peft merges them, or refused with the reason."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.record_lora_reference import REFERENCE_FILE
from engine.__main__ import main
from engine.convert.adapters import AdaptedSource, Adapter
from engine.convert.converter import convert, open_source
from engine.convert.hf_source import HuggingFaceSource
from engine.convert.quantize import BlockQuantized
from engine.describing.architecture import Precision, source_shapes
from engine.describing.manifest import load_manifest
from engine.errors import ModelFormatError
from engine.opening import open_folder
from engine.runtime.model_folder import RunnerSize
from tests.engine.tiny_adapters import (
    ADAPTERS,
    ALL,
    ATTENTION,
    BASE,
    PREFIX,
    UNTIED,
    TinyAdapter,
    base,
    make_adapter,
    module_shapes,
    probe,
)
from tests.engine.tiny_gguf import TinyGGUF
from tests.engine.tiny_hf import TinyHuggingFace, stored_name
from tests.engine.tiny_model import TinySource

QKV = [f"layers.1.{part}" for part in ("q", "k", "v")]


def saved(adapters: list[TinyAdapter], tmp_path: Path) -> list[Path]:
    return [adapter.save(tmp_path / f"adapter-{index}") for index, adapter in enumerate(adapters)]


@pytest.mark.parametrize("case", ADAPTERS)
def test_merged_weights_are_those_of_peft(case: str, tmp_path: Path) -> None:
    source = open_source(base().save(tmp_path / "base"), saved(ADAPTERS[case], tmp_path))
    plain = open_source(tmp_path / "base")
    changed = 0
    with np.load(REFERENCE_FILE) as recorded:
        for name in source_shapes(source.config):
            module = stored_name(name).removesuffix(".weight")
            if module not in module_shapes(UNTIED):
                np.testing.assert_array_equal(source.tensor(name), plain.tensor(name))
                continue
            expected = recorded[f"{case}/{module}"]
            np.testing.assert_allclose(probe(source.tensor(name)), expected, atol=3e-5)
            changed += not np.allclose(probe(plain.tensor(name)), expected, atol=1e-2)
    touched = {name.split(".lora")[0] for adapter in ADAPTERS[case] for name in adapter.tensors}
    assert changed == len({name.removesuffix(".weight") for name in touched})


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_a_model_with_an_adapter_answers_as_one_whose_weights_were_merged_before(
    precision: Precision, tmp_path: Path
) -> None:
    places = saved([make_adapter(ALL, seed=3)], tmp_path)
    source = open_source(base().save(tmp_path / "base"), places)
    merged = base()
    for name in source_shapes(UNTIED):
        merged.tensors[stored_name(name)] = source.tensor(name)
    convert(source, tmp_path / "adapted", precision)
    convert(open_source(merged.save(tmp_path / "merged")), tmp_path / "expected", precision)
    convert(open_source(tmp_path / "base"), tmp_path / "plain", precision)
    logits = [
        open_folder(tmp_path / name).load_model(RunnerSize(1, 1, 64, 64)).prefill(0, [5, 6, 7], 0)
        for name in ("adapted", "expected", "plain")
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 0.05


def test_the_adapters_are_named_in_the_manifest(tmp_path: Path) -> None:
    folder, adapter = (
        base().save(tmp_path / "Tiny"),
        make_adapter(ATTENTION, seed=1).save(tmp_path / "Pirate"),
    )
    out = tmp_path / "model"
    assert main(["convert", str(folder), str(out), "--adapter", str(adapter), "--precision", "fp32"]) == 0
    manifest = load_manifest(out)
    assert manifest.name == "Tiny+Pirate"
    assert manifest.source["adapters"] == "Pirate"


def test_blocks_of_the_source_are_kept_where_no_adapter_changes_them(tmp_path: Path) -> None:
    block = BlockQuantized(8, np.zeros((64, 2, 32), np.uint8), np.ones((64, 2), np.float32))

    class WithBlocks(HuggingFaceSource):
        def blocks(self, name: str) -> BlockQuantized | None:
            return block

    source = WithBlocks(base().save(tmp_path / "base"))
    adapted = open_source(tmp_path / "base", saved([make_adapter(("q_proj",), seed=1)], tmp_path))
    assert isinstance(adapted, AdaptedSource)
    adapted._source = source
    assert adapted.blocks("layers.0.k") is block
    assert adapted.blocks("layers.0.q") is None


def test_old_names_with_the_adapters_own_name_in_them_are_read(tmp_path: Path) -> None:
    adapter = make_adapter(("q_proj",), seed=1)
    expected = open_source(base().save(tmp_path / "base"), saved([adapter], tmp_path)).tensor("layers.1.q")
    adapter.tensors = {k.replace(".weight", ".default.weight"): v for k, v in adapter.tensors.items()}
    again = open_source(tmp_path / "base", [adapter.save(tmp_path / "old")])
    np.testing.assert_array_equal(again.tensor("layers.1.q"), expected)


def spoilt(**settings: Any) -> Callable[[TinyAdapter], None]:
    return lambda adapter: adapter.config.update(settings)


def renamed(old: str, new: str) -> Callable[[TinyAdapter], None]:
    def spoil(adapter: TinyAdapter) -> None:
        adapter.tensors = {name.replace(old, new): values for name, values in adapter.tensors.items()}

    return spoil


def widened(adapter: TinyAdapter) -> None:
    name = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.weight"
    adapter.tensors[name] = np.concatenate([adapter.tensors[name]] * 2)


def without_b(adapter: TinyAdapter) -> None:
    del adapter.tensors[f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.weight"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoilt(peft_type="IA3"), "of the kind 'IA3'; only LoRA"),
        (spoilt(bias="all"), "also trains biases"),
        (spoilt(init_lora_weights="pissa_niter_16"), "which changes the model's own weights"),
        (spoilt(fan_in_fan_out=True), "uses fan_in_fan_out"),
        (spoilt(lora_bias=True), "uses lora_bias"),
        (spoilt(layer_replication=[[0, 2]]), "uses layer_replication"),
        (spoilt(trainable_token_indices=[1]), "uses trainable_token_indices"),
        (spoilt(something_new={"a": 1}), "uses something_new"),
        (spoilt(use_dora=True), "does not have the tensors for model.layers.0.self_attn.q_proj"),
        (spoilt(r=16), "has a rank of 4"),
        (spoilt(rank_pattern={"q_proj": 8}), "has a rank of 4"),
        (spoilt(lora_alpha=None), "no usable lora_alpha: None"),
        (spoilt(lora_alpha="nan"), "no usable lora_alpha: 'nan'"),
        (spoilt(alpha_pattern={"(a+)+b": 3}), "names modules by '(a+)+b'"),
        (spoilt(alpha_pattern={"q_proj(": 3}), "which is not readable"),
        (renamed("lora_A", "lora_C"), "does not have the tensors for model.layers.0"),
        (renamed("lora_B.weight", "lora_B.bias"), "has the tensor"),
        (renamed("q_proj", "experts"), "changes model.layers.0.self_attn.experts"),
        (renamed("layers.2", "layers.3"), "changes model.layers.3.self_attn.q_proj"),
        (renamed("model.layers", "vision_tower.layers"), "changes vision_tower.layers.0"),
        (widened, f"has the shape (128, 4), not (64, 4). It was trained on {BASE}."),
        (without_b, "does not have the tensors for model.layers.0.self_attn.q_proj"),
        (lambda adapter: adapter.tensors.clear(), "holds no weights"),
    ],
)
def test_what_cannot_be_merged_exactly_is_refused(
    spoil: Callable[[TinyAdapter], None], sentence: str, tmp_path: Path
) -> None:
    adapter = make_adapter(("q_proj",), seed=1)
    spoil(adapter)
    folder = base().save(tmp_path / "base")
    with pytest.raises(ModelFormatError, match=re.escape(sentence)):
        open_source(folder, saved([adapter], tmp_path))


def test_an_adapter_for_the_matrix_that_is_embedding_and_head_is_refused(tmp_path: Path) -> None:
    tied = TinyHuggingFace(dataclasses.replace(UNTIED, tied_embeddings=True))
    with pytest.raises(ModelFormatError, match="embedding and head at once"):
        open_source(tied.save(tmp_path / "base"), saved([make_adapter(("embed_tokens",), seed=1)], tmp_path))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", "nothing does not exist. Name the adapter's folder"),
        ("lora.gguf", "lora.gguf is a file. Name the adapter's folder"),
        ("model", "model holds no LoRA adapter as peft saves it: it has no adapter_config.json"),
    ],
)
def test_what_is_no_adapter_is_told(tmp_path: Path, name: str, sentence: str) -> None:
    model = base().save(tmp_path / "model")
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFormatError, match=sentence):
        open_source(model, [tmp_path / name])


def test_an_adapter_that_is_a_pickle_is_refused(tmp_path: Path) -> None:
    place = make_adapter(("q_proj",), seed=1).save(tmp_path / "adapter")
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    with pytest.raises(ModelFormatError, match="a pickle, which may run any code"):
        open_source(base().save(tmp_path / "base"), [place])


def test_an_adapter_without_its_model_says_which_model_it_belongs_to(tmp_path: Path) -> None:
    place = make_adapter(("q_proj",), seed=1).save(tmp_path / "adapter")
    with pytest.raises(ModelFormatError, match=f"It belongs to {BASE}: get that model, .* --adapter {place}"):
        open_source(place)


def test_an_adapter_beside_a_model_is_never_ignored(tmp_path: Path) -> None:
    folder = base().save(tmp_path / "base")
    adapter = make_adapter(("q_proj",), seed=1).save(tmp_path / "adapter")
    for path in adapter.iterdir():
        shutil.copy(path, folder)
    with pytest.raises(ModelFormatError, match=f"also holds a LoRA adapter .* --adapter {folder}"):
        open_source(folder)
    expected = open_source(folder, [folder]).tensor("layers.0.q")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    np.testing.assert_array_equal(open_source(folder, [adapter]).tensor("layers.0.q"), expected)


@pytest.mark.parametrize("case", ["patterns", "DoRA", "embedding and head", "two in order"])
def test_an_adapter_changes_a_gguf_file_as_it_changes_the_folder(case: str, tmp_path: Path) -> None:
    places = saved(ADAPTERS[case], tmp_path)
    folder = open_source(base().save(tmp_path / "base"), places)
    file = open_source(TinyGGUF(UNTIED).save(tmp_path / "base.gguf"), places)
    for name in source_shapes(UNTIED):  # whose queries and keys lie in another order there
        np.testing.assert_allclose(file.tensor(name), folder.tensor(name), atol=1e-6)


def test_a_module_that_is_stored_as_one_is_told_apart_by_its_rows(tmp_path: Path) -> None:
    rows = [shape[0] for name, shape in source_shapes(UNTIED).items() if name in QKV]
    rng = np.random.default_rng(5)
    down, up = (rng.standard_normal(shape, np.float32) for shape in ((4, 64), (sum(rows), 4)))
    prefix = f"{PREFIX}model.layers.1.self_attn.qkv_proj."
    adapter = make_adapter((), seed=0)
    adapter.tensors = {f"{prefix}lora_A.weight": down, f"{prefix}lora_B.weight": up}
    plain = TinySource(UNTIED)
    source = AdaptedSource(plain, [Adapter(adapter.save(tmp_path / "adapter"))])
    change = np.float32(2) * (up @ down)
    for name, part in zip(QKV, np.split(change, np.cumsum(rows)[:-1]), strict=True):
        np.testing.assert_allclose(source.tensor(name), plain.tensor(name) + part, atol=1e-5)
    np.testing.assert_array_equal(source.tensor("layers.0.q"), plain.tensor("layers.0.q"))
