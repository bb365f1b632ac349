"""The graph for a GPU says of every family what transformers says: with attention in elementary operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from engine.convert.converter import convert
from engine.describing.architecture import Precision
from engine.describing.manifest import Manifest, load_manifest
from engine.graphs.decoder import paged_graph, slot_graph
from tests.engine.family_sources import divergence, exact, folder_source, recorded_ids
from tests.engine.paged_cpu import BLOCK_SIZE, open_paged, row, said
from tests.engine.tiny_families import CASES, MAX_TOKENS, NUM_PROMPT

_NUM_BLOCKS = -(-MAX_TOKENS // BLOCK_SIZE)
_MOST_APART = 0.05
"""Between half and double precision, on logits of some 2.4 standard deviations."""
_ATTRIBUTES = ("num_heads", "kv_num_heads", "do_rotary", "local_window_size", "scale", "softcap")


@pytest.mark.parametrize("name", CASES)
def test_chunks_and_single_tokens_of_two_sequences_say_what_the_reference_says(
    name: str, tmp_path: Path
) -> None:
    convert(folder_source(name), tmp_path / "model", Precision.FP16)
    paged = open_paged(tmp_path / "model", num_slots=2, num_blocks=2 + 2 * _NUM_BLOCKS, max_tokens=MAX_TOKENS)
    ids, expected = recorded_ids(name), exact(name)
    first = list(range(2 * _NUM_BLOCKS, _NUM_BLOCKS, -1))
    second = list(range(1, _NUM_BLOCKS + 1))
    rows = [(NUM_PROMPT // 2 - 1, said(paged, row(ids[: NUM_PROMPT // 2], 0, first))[0])]
    rows += [(299, said(paged, row(ids[:300], 0, second, 1))[0])]
    rows += [(NUM_PROMPT - 1, said(paged, row(ids[NUM_PROMPT // 2 : NUM_PROMPT], NUM_PROMPT // 2, first))[0])]
    for step in range(8):
        at, beside = NUM_PROMPT + step, 300 + step
        both = said(paged, row(ids[at : at + 1], at, first), row(ids[beside : beside + 1], beside, second, 1))
        rows += [(at, both[0]), (beside, both[1])]
    paged.close()
    places, made = [place for place, _ in rows], np.stack([logits for _, logits in rows])
    assert np.abs(made - expected[places]).max() < _MOST_APART * expected.std()
    assert np.mean(divergence(expected[places], made)) < 1e-3


def manifest_of(name: str, folder: Path) -> Manifest:
    convert(folder_source(name), folder, Precision.FP16)
    return load_manifest(folder)


@pytest.mark.parametrize("name", CASES)
def test_both_devices_operators_are_told_the_same(name: str, tmp_path: Path) -> None:
    """Paged attention runs on no CPU: it must have what attention over slots has, which is proven."""
    manifest = manifest_of(name, tmp_path / "model")
    slots = onnx.load_from_string(slot_graph(manifest, MAX_TOKENS)).graph
    blocks = onnx.load_from_string(paged_graph(manifest, MAX_TOKENS)).graph
    told = [
        [
            {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            for node in graph.node
            if node.op_type == kind
        ]
        for graph, kind in ((slots, "GroupQueryAttention"), (blocks, "PagedAttention"))
    ]
    assert len(told[0]) == len(told[1]) == manifest.decoder.num_layers
    for on_cpu, on_gpu in zip(*told, strict=True):
        assert {key: on_cpu.get(key) for key in _ATTRIBUTES} == {key: on_gpu.get(key) for key in _ATTRIBUTES}


@pytest.mark.parametrize(("name", "has_norms"), [("qwen3", True), ("gemma-3", True), ("olmo-2", False)])
def test_paged_attention_norms_heads_itself(name: str, has_norms: bool, tmp_path: Path) -> None:
    manifest = manifest_of(name, tmp_path / "model")
    graph = onnx.load_from_string(paged_graph(manifest, MAX_TOKENS)).graph
    attention = [node for node in graph.node if node.op_type == "PagedAttention"]
    assert all(bool(node.input[12] and node.input[13]) == has_norms for node in attention)
    assert all(bool(node.input[1]) != has_norms for node in attention)
    epsilons = [
        onnx.helper.get_attribute_value(attribute)
        for node in attention
        for attribute in node.attribute
        if attribute.name == "qk_norm_epsilon"
    ]
    assert epsilons == pytest.approx([manifest.decoder.rms_norm_eps] * len(attention) if has_norms else [])


def test_sums_that_half_precision_cannot_hold_are_kept_in_single_precision(tmp_path: Path) -> None:
    """Gemma 3 adds numbers up that exceed 65,504."""
    source = folder_source("gemma-3")
    manifest = manifest_of("gemma-3", tmp_path / "model")
    graph = onnx.load_from_string(paged_graph(manifest, MAX_TOKENS, is_plain=True))
    known = onnx.shape_inference.infer_shapes(graph)  # of what standard operators give
    kinds = {value.name: value.type.tensor_type.elem_type for value in known.graph.value_info}
    sums = [node.output[3] for node in graph.graph.node if node.op_type == "SkipSimplifiedLayerNormalization"]
    assert len(sums) == 2 * source.config.num_layers
    casts = [node for node in graph.graph.node if node.op_type == "Cast" and node.output[0] in kinds]
    widened = {node.output[0] for node in casts if kinds[node.output[0]] == onnx.TensorProto.FLOAT}
    normed = [node for node in graph.graph.node if node.op_type == "SimplifiedLayerNormalization"]
    assert sum(node.input[0] in widened for node in normed) == 2 * source.config.num_layers
