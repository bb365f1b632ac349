"""The sampler on a device chooses what the sampler on the host chooses from the same logits."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from engine.graphs.graph_builder import GraphBuilder
from engine.graphs.sampler_graph import SamplerGraph
from engine.runtime.sampling import CHOSEN_BY_HOST, FloatArray, SampledRow, Sampler, device_row_of
from engine.types import SamplingParams

VOCAB_SIZE = 500
NUM_SLOTS = 5


@functools.cache
def session() -> onnxruntime.InferenceSession:
    """Return the sampler alone, over logits from outside."""
    graph = GraphBuilder()
    sampler = SamplerGraph(graph, VOCAB_SIZE)
    sampler.add("logits", "newest_ids")
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["sequences", VOCAB_SIZE])
    newest = helper.make_tensor_value_info("newest_ids", TensorProto.INT64, ["sequences"])
    outputs = [value for value in sampler.outputs() if value.name != "logits"]
    model = graph.build("sampler", [logits, newest, *sampler.inputs()], outputs)
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def choose(
    logits: FloatArray, rows: Sequence[tuple[float, ...]], seen: np.ndarray, newest: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return next ids, what the host is told, and the tokens seen then, at slots 0, 1, …"""
    next_ids, chosen, seen_out = session().run(
        ["next_ids", "chosen", "seen_out"],
        {
            "logits": logits,
            "newest_ids": np.array(newest, np.int64),
            "sampling": np.array(rows, np.float32),
            "slots": np.arange(len(rows)),
            "seen": seen,
            "penalised": np.arange(VOCAB_SIZE) > 2,
        },
    )
    return next_ids, chosen, seen_out


def nothing_seen() -> np.ndarray:
    return np.zeros((NUM_SLOTS, VOCAB_SIZE), bool)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 64, 65, 1000]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.1, 1.8]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=300, deadline=None)
@given(
    params=st.lists(PARAMS, min_size=1, max_size=NUM_SLOTS),
    spread=st.sampled_from([0.1, 1.0, 4.0, 12.0]),
    number=st.integers(0, 2**32),
)
def test_the_device_chooses_as_the_host_does(
    params: list[SamplingParams], spread: float, number: int
) -> None:
    random = np.random.default_rng(number)
    logits = random.normal(0, spread, (len(params), VOCAB_SIZE)).astype(np.float32)
    history = [random.integers(0, VOCAB_SIZE, random.integers(1, 200)).tolist() for _ in params]
    seen = nothing_seen()
    on_host = [Sampler(each, ids, {0, 1, 2}) for each, ids in zip(params, history, strict=True)]
    on_device = [Sampler(each, ids, {0, 1, 2}) for each, ids in zip(params, history, strict=True)]
    for index, sampler in enumerate(on_device):
        seen[index, list(sampler.seen_ids)] = True
    newest = [ids[-1] for ids in history]
    rows = [sampler.device_row() for sampler in on_device]
    next_ids, chosen, _ = choose(logits, rows, seen, newest)
    for index, (host, device) in enumerate(zip(on_host, on_device, strict=True)):
        wanted = host.sample(logits[index].copy())
        token, suffices, total = chosen[index]
        assert token == next_ids[index]
        assert np.isfinite(total)
        whole = None if suffices else logits[index].copy()
        assert device.take(SampledRow(int(token), whole)) == wanted
        assert device.device_row() == host.device_row(), "both go on with the same random numbers"
        if suffices:
            assert device.fits_device


def test_what_the_candidates_can_tell_they_tell() -> None:
    random = np.random.default_rng(3)
    logits = random.normal(0, 4, (1, VOCAB_SIZE)).astype(np.float32)
    tellable = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, top_k=64, top_p=1.0),
        SamplingParams(temperature=1.0, top_k=0, top_p=0.9),
        SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.05),
    ]
    for params in tellable:
        row = Sampler(params, ()).device_row()
        assert choose(logits, [row], nothing_seen(), [5])[1][0, 1] == 1.0, params
    for params in (
        SamplingParams(temperature=1.0, top_k=65),
        SamplingParams(temperature=0.0, frequency_penalty=0.1),
        SamplingParams(temperature=1.0, top_k=5, presence_penalty=-0.1),
        SamplingParams(temperature=2.0, top_k=0, top_p=1.0),
        SamplingParams(temperature=2.0, top_k=0, top_p=0.99),
    ):
        row = Sampler(params, ()).device_row()
        assert choose((logits / 8).astype(np.float32), [row], nothing_seen(), [5])[1][0, 1] == 0.0, params
    assert choose(logits, [CHOSEN_BY_HOST], nothing_seen(), [5])[1][0, 1] == 0.0


def test_the_newest_token_counts_as_seen_at_once_and_control_tokens_never_do() -> None:
    logits = np.zeros((2, VOCAB_SIZE), np.float32)
    logits[:, 7], logits[:, 2], logits[:, 9] = 5.0, 4.9, 4.8
    rows = [device_row_of(SamplingParams(temperature=0.0, repetition_penalty=1.5), 0.0)] * 2
    next_ids, _, seen = choose(logits, rows, nothing_seen(), [7, 2])
    assert next_ids.tolist() == [2, 7]
    assert np.argwhere(seen).tolist() == [[0, 7]]


def test_the_sampled_share_is_the_tokens_probability() -> None:
    padded = np.full((1, VOCAB_SIZE), -50, np.float32)
    padded[:, 10:14] = np.log([0.5, 0.3, 0.15, 0.05])
    counts = dict.fromkeys(range(10, 14), 0)
    for number in range(1000):
        uniform = (number + 0.5) / 1000
        row = device_row_of(SamplingParams(1.0, 1.0, 40, 0.0, 1.0), uniform)
        next_ids, _, _ = choose(padded, [row], nothing_seen(), [5])
        counts[int(next_ids[0])] += 1
    assert counts == {10: 500, 11: 300, 12: 150, 13: 50}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_told(bad: float) -> None:
    logits = np.zeros((2, VOCAB_SIZE), np.float32)
    logits[1, 123] = bad
    _, chosen, _ = choose(logits, [device_row_of(SamplingParams(), 0.5)] * 2, nothing_seen(), [5, 5])
    assert np.isfinite(chosen[:, 2]).tolist() == [True, False]
