"""Hugging Face folders become models that compute what the folder says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.record_hf_reference import NUM_GREEDY, NUM_PROMPT, REFERENCE_FILE
from engine.convert.converter import convert, open_source
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_hf import CHECKPOINTS, TinyHuggingFace
from tests.engine.tiny_model import tiny_config

MAX_TOKENS = NUM_PROMPT + NUM_GREEDY


def converted(model: TinyHuggingFace, tmp_path: Path, precision: Precision = Precision.FP32) -> CpuModel:
    convert(open_source(model.save(tmp_path / "source")), tmp_path / "model", precision)
    manifest = load_manifest(tmp_path / "model")
    options = ModelOptions(2, 1, min(MAX_TOKENS, manifest.decoder.context_length))
    return CpuModel(tmp_path / "model", manifest, options)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with np.load(REFERENCE_FILE) as file:
        return dict(file)


def random_ids(seed: int, size: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 384, size)]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_reference_is_what_transformers_computes(recorded: dict[str, Any], name: str) -> None:
    source = CHECKPOINTS[name]()
    ids = [int(token) for token in recorded[f"{name}/ids"]]
    rows = recorded[f"{name}/rows"]
    exact = reference_logits(source.decoder, source.tensor, ids)
    assert np.abs(exact[rows][:, recorded["columns"]] - recorded[f"{name}/logits"]).max() < 1e-4
    assert np.abs(np.logaddexp.reduce(exact[rows], axis=1) - recorded[f"{name}/logsumexp"]).max() < 1e-4
    assert list(exact.argmax(axis=1)[NUM_PROMPT - 1 : -1]) == ids[NUM_PROMPT:]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_float32_equals_the_reference(tmp_path: Path, recorded: dict[str, Any], name: str) -> None:
    """Prompts of 1 to 700 tokens, and 32 steps of greedy decoding after each."""
    source = CHECKPOINTS[name]()
    model = converted(source, tmp_path)
    prompt = [int(token) for token in recorded[f"{name}/ids"]][:NUM_PROMPT]
    for num_prompt in (1, 2, 17, NUM_PROMPT):
        ids = prompt[:num_prompt]
        rows = [model.prefill(0, ids, 0).copy()]
        for _ in range(NUM_GREEDY):
            ids.append(int(rows[-1].argmax()))
            rows.append(model.decode(0, ids[-1:], [len(ids) - 1])[0].copy())
        exact = reference_logits(source.decoder, source.tensor, ids)[num_prompt - 1 :]
        assert np.abs(np.stack(rows) - exact).max() < 1e-4
        assert [int(row.argmax()) for row in rows] == [int(row.argmax()) for row in exact]
    assert ids == [int(token) for token in recorded[f"{name}/ids"]]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_eight_bits_stay_close(tmp_path: Path, name: str) -> None:
    source = CHECKPOINTS[name]()
    ids = random_ids(1, 200)
    logits = converted(source, tmp_path, Precision.INT8).score(0, ids, 0).astype(np.float64)
    exact = reference_logits(source.decoder, source.tensor, ids)
    kl = [kl_divergence(p, q) for p, q in zip(exact, logits, strict=True)]
    assert 0 < np.mean(kl) <= 0.02


def kl_divergence(p_logits: Any, q_logits: Any) -> float:
    p, q = (logits - np.logaddexp.reduce(logits) for logits in (p_logits, q_logits))
    return float((np.exp(p) * (p - q)).sum())


def test_the_description_is_read(tmp_path: Path) -> None:
    model = TinyHuggingFace(tiny_config(tied=False))
    source = open_source(model.save(tmp_path / "Tiny-Chat"))
    assert source.config == model.decoder
    assert (source.name, source.bos_id, source.eos_id, source.stop_ids) == ("Tiny-Chat", 1, 2, (0,))
    assert source.origin == {"format": "huggingface", "folder": "Tiny-Chat"}
    assert source.chat.format is None


def test_optional_keys_have_the_usual_values(tmp_path: Path) -> None:
    model = TinyHuggingFace(tiny_config(num_kv_heads=4, tied=False))
    for key in ("head_dim", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings"):
        del model.config[key]
    for key in ("rope_parameters", "bos_token_id", "eos_token_id", "tie_word_embeddings", "attention_bias"):
        del model.config[key]
    source = open_source(model.save(tmp_path / "source"))
    assert source.config == dataclasses.replace(model.decoder, rms_norm_eps=1e-6, context_length=2048)
    assert (source.bos_id, source.eos_id) == (1, 2)


ROPE_KEYS: dict[str, tuple[dict[str, Any], float, float]] = {
    "new": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, 1.0),
    "new, linear": ({"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e4}}, 1e4, 2.0),
    "old": ({"rope_theta": 1000000, "rope_scaling": None}, 1e6, 1.0),
    "old, linear": ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}}, 1e4, 4.0),
    "between": ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 1e4, 4.0),
    "old and default": ({"rope_theta": 2e4, "rope_scaling": {"rope_type": "default"}}, 2e4, 1.0),
    "none": ({}, 1e4, 1.0),
}


@pytest.mark.parametrize(("keys", "theta", "factor"), ROPE_KEYS.values(), ids=ROPE_KEYS)
def test_old_and_new_rope_keys_are_read(
    tmp_path: Path, keys: dict[str, Any], theta: float, factor: float
) -> None:
    model = TinyHuggingFace()
    del model.config["rope_parameters"]
    model.config |= keys
    config = open_source(model.save(tmp_path / "source")).config
    assert (config.rope_theta, config.rope_factor) == (theta, factor)


def test_every_way_to_name_the_ends_is_read(tmp_path: Path) -> None:
    model = TinyHuggingFace()
    model.config["eos_token_id"] = [2, 1]
    model.files["generation_config.json"] = json.dumps({"eos_token_id": [2, 0]}).encode()
    model.files["tokenizer_config.json"] = json.dumps(
        {"bos_token": {"content": "<|endoftext|>"}, "eos_token": "<|im_end|>"}
    ).encode()
    source = open_source(model.save(tmp_path / "source"))
    assert (source.bos_id, source.eos_id, source.stop_ids) == (0, 2, (0, 1))
    convert(source, tmp_path / "model", Precision.FP32)
    assert load_manifest(tmp_path / "model").stop_ids == (0, 1)


def test_a_tied_model_may_bring_its_head_along_and_old_ones_what_follows_from_the_config(
    tmp_path: Path,
) -> None:
    model = TinyHuggingFace()
    model.tensors["lm_head.weight"] = model.tensors["model.embed_tokens.weight"].copy()
    model.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    ids = random_ids(3, 20)
    logits = converted(model, tmp_path).score(0, ids, 0)
    assert np.abs(logits - reference_logits(model.decoder, model.tensor, ids)).max() < 1e-4


def test_hugging_faces_cache_is_made_of_links_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    saved = TinyHuggingFace(num_shards=2).save(tmp_path / "saved")
    hub = tmp_path / "models--somebody--Tiny-Chat"
    snapshot = hub / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(saved.iterdir())):
        (hub / f"blob-{number}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("..") / ".." / f"blob-{number}")
    source = open_source(snapshot)
    assert source.name == "Tiny-Chat"
    convert(source, tmp_path / "model", Precision.INT8)


def test_shards_without_an_index_are_taken_together(tmp_path: Path) -> None:
    folder = TinyHuggingFace(num_shards=3).save(tmp_path / "source")
    (folder / "model.safetensors.index.json").unlink()
    convert(open_source(folder), tmp_path / "model", Precision.INT8)
