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
    ("fp32", True): ["f245696ae3e5035e", "9cb0ee9d7e6208f9", "50cc55abb936efa1"],
    ("fp32", False): ["e3d08a50d7f73fc8", "f9d7573f033d8bbb", "b945b94958fa7981"],
    ("fp16", True): ["1b7fd07f4ea98dee", "3741d7f9d0fcd17a", "a44f9c94a71be145"],
    ("fp16", False): ["4aea859db04aa1c8", "ea854c7905d8ba40", "bccf5d542b70486f"],
    ("int8", True): ["251b9d140023c64a", "d697869677b3c27a", "8adda871d72b7386"],
    ("int8", False): ["4a5c4e15c071aa5e", "92483bb70552fdb6", "5e7a056a1954a222"],
    ("int4", True): ["e8aef18ba45f1e21", "65653a6bfcd49700", "bdb5bea6b52f07fb"],
    ("int4", False): ["5dff99fee8f397b7", "21f3317e10285f66", "7cdbd6bc5f6f319b"],
}
"""The graphs for the CPU, for a GPU and in elementary operators, as they were before other families."""


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
