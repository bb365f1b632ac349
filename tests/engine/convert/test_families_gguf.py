"""Every family from a GGUF file, as llama.cpp's converter writes it, computes what llama.cpp computes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from engine.convert.converter import open_source
from engine.convert.gguf_config import GGUFConfigReader
from engine.convert.rope_scaling import yarn, yarn_magnitude
from engine.convert.source import ModelSource, TensorCatalogue
from engine.describing.architecture import DecoderConfig, Precision, source_shapes
from engine.describing.layers import Activation, Rotation
from engine.errors import ModelFormatError
from tests.engine.family_sources import (
    MOST_APART,
    divergence,
    exact_of_gguf,
    folder_source,
    gguf_source,
    model,
    recorded,
    recorded_ids,
)
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_families import CASES as ALL_CASES
from tests.engine.tiny_families import MAX_TOKENS, NUM_PROMPT
from tests.engine.tiny_family_gguf import (
    GGUF_LOGITS_FILE,
    digest,
    gguf_tensors,
    recorded_files,
    save_family_gguf,
)

CASES = [name for name in ALL_CASES if name != "llama-dynamic"]
"""No field says that its rotation can be stretched: it is a model of a shorter context then."""
LOST = {
    "llama-dynamic-within": "no field says that the rotation is stretched",
    "llama-yarn-magnitudes": "no field has the magnitudes",
    "mistral": "no field has the window",
    "ministral": "no field has the window",
    "qwen2-windows": "no field has the window",
    "gemma-2": "no field has the scale of queries, which is told by the number of layers",
    "gemma-3-new-keys": "no field has which layers have a window, nor the scale of queries",
    "smollm3": "no field says which layers rotate nothing: every fourth",
    "smollm3-interval": "no field says which layers rotate nothing: every fourth",
}
"""What llama.cpp's converter leaves out of these files."""


@pytest.mark.parametrize("name", CASES)
def test_the_files_are_those_of_llama_cpps_converter(name: str, tmp_path: Path) -> None:
    path = save_family_gguf(name, folder_source(name), tmp_path / "model.gguf")
    stored = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}
    assert digest(stored) == recorded_files()[name]["digest"]
    assert stored.keys() == gguf_tensors(name, folder_source(name)).keys()


@pytest.mark.parametrize("name", [name for name in CASES if name not in LOST])
def test_a_file_describes_the_decoder_as_the_folder_does(name: str) -> None:
    file, folder = gguf_source(name), folder_source(name)
    assert bare(file.config) == bare(folder.config)
    scalings = file.config.rope_scaling, folder.config.rope_scaling
    for part in ("divisors", "long_divisors", "magnitude"):
        first, second = (np.array(getattr(scaling, part)) for scaling in scalings)
        np.testing.assert_allclose(first, second, rtol=1e-6)
    for tensor in ("layers.1.q", "layers.1.k", "layers.2.gate", "layers.2.up", "final_norm"):
        np.testing.assert_array_equal(file.tensor(tensor), folder.tensor(tensor))


def bare(config: DecoderConfig) -> dict[str, object]:
    """Return a description with numbers as float32 has them, and without what is compared by itself."""
    described: dict[str, object] = dataclasses.asdict(config)
    del described["rope_scaling"]
    if not any(layer.rotation is Rotation.LOCAL for layer in config.layers):
        del described["local_rope_theta"]  # which nothing uses
    return {
        key: float(np.float32(value)) if isinstance(value, float) else value
        for key, value in described.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_float32_equals_the_reference(name: str, tmp_path: Path) -> None:
    ids, expected = recorded_ids(name), exact_of_gguf(name)
    made = model(gguf_source(name), tmp_path / "model", Precision.FP32)
    said = made.score(0, ids[:NUM_PROMPT], 0)
    assert np.abs(said - expected[:NUM_PROMPT]).max() < MOST_APART
    for past in range(NUM_PROMPT, len(ids)):
        row = made.decode(0, [ids[past]], [past])[0]
        assert np.abs(row - expected[past]).max() < MOST_APART


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize(
    "name", ["llama-3.1", "mistral-nemo", "qwen3", "gemma-3", "phi-3", "olmo-2", "granite"]
)
def test_blocks_are_taken_over_exactly(name: str, kind: str, tmp_path: Path) -> None:
    """Also where rows are permuted, or lie in one matrix with others."""
    path = save_family_gguf(name, folder_source(name), tmp_path / "model.gguf", kind)
    source = open_source(path)
    for tensor in ("q", "k", "v", "gate", "up", "down"):
        blocks = source.blocks(f"layers.1.{tensor}")
        assert blocks is not None
        assert blocks.bits == int(kind[1])
        np.testing.assert_allclose(
            blocks.dequantize(), source.tensor(f"layers.1.{tensor}"), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("name", [name for name in CASES if name not in LOST])
def test_eight_bits_stay_close(name: str, tmp_path: Path) -> None:
    ids, expected = recorded_ids(name)[:NUM_PROMPT], exact_of_gguf(name)[:NUM_PROMPT]
    said = model(gguf_source(name), tmp_path / "model", Precision.INT8).score(0, ids, 0)
    assert 0 < np.mean(divergence(expected, said)) < 0.02


ODD: tuple[Any, ...] = (
    *(True, False, -1, 0, 1, 3.7, 1e308, float("nan"), float("inf"), 10**30),
    *("x", "", [], [1], [True, False, True], ["x"]),
)
"""What a field of a damaged file may hold."""


@pytest.mark.parametrize("name", ["llama-3.1", "llama-yarn", "gemma-2", "gemma-3", "phi-4-mini", "olmo-3"])
def test_no_odd_field_is_more_than_a_sentence(name: str) -> None:
    fields, tensors = recorded_files()[name]["fields"], gguf_tensors(name, folder_source(name))
    num_refused = 0
    for key in fields:
        for odd in ODD:
            changed = {**fields, key: odd}

            def field(wanted: str, default: Any = None, held: dict[str, Any] = changed) -> Any:
                return held.get(wanted, default)

            # What is no `ModelFormatError` of these a source makes a sentence of.
            with contextlib.suppress(ModelFormatError, ArithmeticError, LookupError, TypeError, ValueError):
                GGUFConfigReader(field, tensors, 384, tensors.__getitem__)
                continue
            num_refused += 1
    assert num_refused > 50


def fused(name: str, source: ModelSource, path: Path) -> Path:
    """Write a file as llama.cpp's converter does with --fuse-qkv."""
    tensors = gguf_tensors(name, source)
    for layer in range(source.config.num_layers):
        for kind in ("weight", "bias"):
            if f"blk.{layer}.attn_q.{kind}" in tensors:
                parts = [tensors.pop(f"blk.{layer}.attn_{part}.{kind}") for part in "qkv"]
                tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
    return save_family_gguf(name, source, path, tensors=tensors)


@pytest.mark.parametrize("name", ["llama-3.1", "llama-biases", "qwen2"])
def test_queries_keys_and_values_may_lie_in_one_matrix(name: str, tmp_path: Path) -> None:
    whole, source = gguf_source(name), open_source(fused(name, folder_source(name), tmp_path / "f.gguf"))
    assert source.config == whole.config
    for tensor in source_shapes(whole.config):
        np.testing.assert_array_equal(source.tensor(tensor), whole.tensor(tensor))
    assert isinstance(source, TensorCatalogue)
    assert {key: entry.shape for key, entry in source.catalogue().items()} == source_shapes(whole.config)


@functools.cache
def said_by_llama_cpp() -> dict[str, Any]:
    with np.load(GGUF_LOGITS_FILE) as file:
        return dict(file)


_YARN = yarn(16, 10000.0, factor=4.0, original_context=256, magnitude=yarn_magnitude(4.0))
IGNORED: dict[str, dict[str, Any]] = {
    "phi-3": {"layers": ()},
    "llama-yarn-magnitudes": {"rope_scaling": _YARN},
    "olmo-3": {
        "rope_scaling": yarn(16, 5e5, factor=4.0, original_context=256, magnitude=yarn_magnitude(4.0))
    },
}
"""What llama.cpp does not read of these files, and is followed here: window, ramp, magnitude."""


@pytest.mark.parametrize("name", [name for name in CASES if name != "qwen3-biases"])
def test_the_reference_is_what_llama_cpp_computes(name: str) -> None:
    """llama.cpp looks GELU up in half precision, and does not load biases of Qwen 3."""
    source, said = gguf_source(name), said_by_llama_cpp()
    config = dataclasses.replace(source.config, **IGNORED.get(name, {}))
    made = reference_logits(config, source.tensor, recorded_ids(name), MAX_TOKENS)
    rows, columns = recorded()["rows"], recorded()["columns"]
    apart = MOST_APART if config.activation is Activation.SILU else 4e-3
    assert np.abs(made[rows][:, columns] - said[f"{name}/logits"]).max() < apart
    sums = np.logaddexp.reduce(made[rows], axis=1)
    assert np.abs(sums - said[f"{name}/logsumexp"]).max() < apart
    differ = np.flatnonzero(made.argmax(axis=1) != said[f"{name}/best"])
    second = np.sort(made[differ], axis=1)[:, -2] - made[differ].max(axis=1)
    assert (second > -2 * apart).all()


def test_what_llama_cpp_ignores_would_make_a_difference() -> None:
    rows, columns = recorded()["rows"], recorded()["columns"]
    for name in IGNORED:
        said = said_by_llama_cpp()[f"{name}/logits"]
        assert np.abs(exact_of_gguf(name)[rows][:, columns] - said).max() > 0.1
