"""The graphs that are made when a model is loaded use all that is stored, and hold no more than runs need."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.convert.converter import convert
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision
from engine.describing.layers import Rotation
from engine.describing.manifest import WEIGHTS_FILE, load_manifest
from engine.describing.stored import BlockTensor, StoredTensor
from engine.graphs.decoder import paged_graph, slot_graph
from engine.graphs.rotary import rotary_tables
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_model import TinySource, make_tiny_model, tiny_config

A_MILLION = 2**20


def places(tensor: StoredTensor) -> set[int]:
    """Return where the arrays of a tensor begin."""
    if not isinstance(tensor, BlockTensor):
        return {tensor.offset}
    return {tensor.values, tensor.scales, *([] if tensor.zero_points is None else [tensor.zero_points])}


def outline(graph: bytes) -> str:
    """Return a short hash of all of a graph but the numbers of its constants."""
    described, digest = onnx.load_from_string(graph).graph, hashlib.sha256()
    for part in (*described.node, *described.input, *described.output):
        digest.update(part.SerializeToString(deterministic=True))
    for tensor in described.initializer:
        places = sorted((entry.key, entry.value) for entry in tensor.external_data)
        digest.update(repr((tensor.name, list(tensor.dims), tensor.data_type, places)).encode())
    return digest.hexdigest()[:16]


LLAMA_2 = {
    ("fp32", True): ["5910e6170b88ba5a", "26585104d015325e", "05863a25465fd3e0"],
    ("fp32", False): ["611524127c308607", "4f4fe5e3b5addb02", "7af0af11808a785c"],
    ("fp16", True): ["2d7cfe0dfe71312e", "4ea1507b1cd8d684", "0b645edfe1834dad"],
    ("fp16", False): ["db31ea922f54daad", "d1663fdfcf1e4d51", "4097bc8670543c07"],
    ("int8", True): ["6d2618f30b73ab66", "b12103f6548ee776", "fc5aeadfeeff29fe"],
    ("int8", False): ["d736fb9286fff4ff", "9e3a549f34373c44", "909af4474e5d2d76"],
    ("int4", True): ["871e017e8f5250bc", "24cd5ca2801fe555", "79a0cdd3ae24f6c8"],
    ("int4", False): ["0b24e510ad97a685", "8a96215a2283f144", "660cd71ced36a1c2"],
}
"""The graphs for the CPU, for a GPU and in elementary operators, as they were recorded."""


@pytest.mark.parametrize(("precision", "tied"), LLAMA_2)
def test_the_graphs_of_a_llama_2_have_no_node_that_other_families_brought(
    tmp_path: Path, precision: str, tied: bool
) -> None:
    manifest = load_manifest(make_tiny_model(tmp_path / "model", Precision(precision), tied=tied))
    graphs = (slot_graph(manifest, 64), paged_graph(manifest, 64), paged_graph(manifest, 64, is_plain=True))
    assert [outline(graph) for graph in graphs] == LLAMA_2[precision, tied]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", Precision)
def test_every_graph_takes_all_that_is_stored(tmp_path: Path, precision: Precision, tied: bool) -> None:
    manifest = load_manifest(make_tiny_model(tmp_path / "model", precision, tied=tied))
    stored = set().union(*map(places, manifest.tensors.values()))
    for graph in (
        slot_graph(manifest, 64),
        paged_graph(manifest, 64),
        paged_graph(manifest, 64, is_plain=True),
    ):
        taken = {
            int(entry.value)
            for tensor in onnx.load_from_string(graph).graph.initializer
            for entry in tensor.external_data
            if entry.key == "offset"
        }
        assert taken == stored


def test_tables_for_a_million_tokens_are_made_in_pieces() -> None:
    cos, sin = rotary_tables(tiny_config(), Rotation.MAIN, A_MILLION, A_MILLION + 1)
    assert cos.shape == sin.shape == (A_MILLION + 1, 8)
    angles = np.arange(A_MILLION + 1)[-3:, None] * 10000.0 ** -(np.arange(8) / 8)
    np.testing.assert_allclose(cos[-3:], np.cos(angles), atol=1e-7)
    np.testing.assert_allclose(sin[-3:], np.sin(angles), atol=1e-7)


def test_rotary_tables_are_as_long_as_what_runs_needs_whatever_the_context(tmp_path: Path) -> None:
    source = TinySource(tiny_config(context_length=A_MILLION))
    convert(source, tmp_path / "long", Precision.FP32)
    short = make_tiny_model(tmp_path / "short")
    sizes = {(folder / WEIGHTS_FILE).stat().st_size for folder in (tmp_path / "long", short)}
    assert len(sizes) == 1
    manifest = load_manifest(tmp_path / "long")
    assert len(slot_graph(manifest, 64)) == len(slot_graph(load_manifest(short), 64)) < 50_000
    assert len(paged_graph(manifest, 64)) < 50_000
    ids = [5 + position % 300 for position in range(64)]
    model = CpuModel(tmp_path / "long", manifest, ModelOptions(1, 2, 64))
    exact = reference_logits(source.config, source.tensor, ids)
    assert np.abs(model.score(0, ids, 0) - exact).max() < 1e-4
    model.prefill(1, ids[:3], 0)
    beside = model.decode(0, [0, ids[3]], [64, 3])[
        1
    ]  # the filler of a full slot stands behind the last position
    assert np.abs(beside - exact[3]).max() < 1e-4
