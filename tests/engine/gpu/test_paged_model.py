"""The decoder over a paged cache: what it says, however its tokens are packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from engine.convert.converter import convert
from engine.convert.gguf_source import GGUFSource
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from engine.describing.stored import BlockTensor
from engine.gpu.model import PagedModel
from engine.gpu.step import PagedRow
from engine.runtime.sampling import FloatArray
from tests.engine.paged_cpu import open_paged, row, said
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_gguf import QuantType, TinyGGUF
from tests.engine.tiny_model import TinySource, make_tiny_model, tiny_config

PROMPT = tuple(np.random.default_rng(1).integers(3, 380, 50).tolist())
OTHER = tuple(np.random.default_rng(2).integers(3, 380, 70).tolist())
TOLERANCE = 0.03
"""Between half and double precision, on logits of 2.4 standard deviations."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("paged") / "model", Precision.FP16)


@pytest.fixture
def model(folder: Path) -> Iterator[PagedModel]:
    model = open_paged(folder)
    yield model
    model.close()


def expected(ids: Sequence[int]) -> FloatArray:
    logits: FloatArray = reference_logits(tiny_config(), TinySource().tensor, ids)[-1].astype(np.float32)
    return logits


def test_a_prompt_says_what_the_paper_says(model: PagedModel) -> None:
    logits = said(model, row(PROMPT, 0, [5, 2, 9, 7]))
    np.testing.assert_allclose(logits[0], expected(PROMPT), atol=TOLERANCE)


@pytest.mark.parametrize("num_kv_heads", [1, 4])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_few_bits_say_what_they_say_on_the_cpu(
    tmp_path: Path, precision: Precision, num_kv_heads: int
) -> None:
    folder = make_tiny_model(tmp_path / "model", precision, num_kv_heads=num_kv_heads, tied=num_kv_heads == 1)
    assert_says_what_the_cpu_says(folder)


def test_zero_points_count_on_a_gpu_too(tmp_path: Path) -> None:
    convert(
        GGUFSource(TinyGGUF(quant_type=QuantType.Q4_1).save(tmp_path / "tiny.gguf")),
        tmp_path / "model",
        Precision.INT4,
    )
    qkv = load_manifest(tmp_path / "model").tensors["layers.0.qkv"]
    assert isinstance(qkv, BlockTensor)
    assert qkv.zero_points is not None
    assert_says_what_the_cpu_says(tmp_path / "model")


def assert_says_what_the_cpu_says(folder: Path) -> None:
    paged = open_paged(folder)
    cpu = CpuModel(folder, load_manifest(folder), ModelOptions(1, 2, 256))
    logits = said(paged, row(PROMPT, 0, [1, 2, 3, 4]))
    paged.close()
    # The CPU rounds activations to 8 bits.
    assert np.abs(logits[0] - cpu.prefill(0, PROMPT, 0)).mean() < 0.1


def test_chunks_and_single_tokens_say_what_one_run_says(model: PagedModel) -> None:
    whole = said(model, row(PROMPT, 0, [1, 2, 3, 4]))
    blocks = [8, 6, 7, 5]
    said(model, row(PROMPT[:23], 0, blocks))
    said(model, row(PROMPT[23:47], 23, blocks))
    for index in range(47, len(PROMPT)):
        last = said(model, row(PROMPT[index : index + 1], index, blocks))
    np.testing.assert_allclose(last, whole, atol=TOLERANCE)


def test_prompts_and_answers_in_one_run_do_not_disturb_each_other(model: PagedModel) -> None:
    said(model, row(PROMPT[:-1], 0, [1, 2, 3, 4], 0), row(OTHER[:30], 0, [5, 6, 7, 8, 9], 1))
    mixed = said(
        model,
        row(PROMPT[-1:], len(PROMPT) - 1, [1, 2, 3, 4], 0),
        row(OTHER[30:], 30, [5, 6, 7, 8, 9], 1),
        row(PROMPT[:20], 0, [10, 11], 2),
    )
    for logits, ids in zip(mixed, (PROMPT, OTHER, PROMPT[:20]), strict=True):
        np.testing.assert_allclose(logits, expected(ids), atol=TOLERANCE)


@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_decode_rows_are_padded_to_a_bucket_that_changes_nothing(model: PagedModel, num_rows: int) -> None:
    prompts = [PROMPT[: 10 + index] for index in range(num_rows)]
    tables = [[1 + 2 * index, 2 + 2 * index] for index in range(num_rows)]
    said(
        model,
        *(row(ids[:-1], 0, table, i) for i, (ids, table) in enumerate(zip(prompts, tables, strict=True))),
    )
    last = [row(ids[-1:], len(ids) - 1, tables[i], i) for i, ids in enumerate(prompts)]
    for logits, ids in zip(said(model, *last), prompts, strict=True):
        np.testing.assert_allclose(logits, expected(ids), atol=TOLERANCE)


def test_a_shared_block_is_read_by_both_and_written_by_none(model: PagedModel) -> None:
    said(model, row(PROMPT[:32], 0, [1, 2]))
    first = said(model, row(PROMPT[32:], 32, [1, 2, 3, 4]))
    other = (*PROMPT[:32], *OTHER[:9])
    second = said(model, row(OTHER[:9], 32, [1, 2, 5]))
    np.testing.assert_allclose(first[0], expected(PROMPT), atol=TOLERANCE)
    np.testing.assert_allclose(second[0], expected(other), atol=TOLERANCE)
    again = said(model, row(PROMPT[-1:], len(PROMPT) - 1, [1, 2, 3, 4]))
    np.testing.assert_allclose(again[0], expected(PROMPT), atol=TOLERANCE)


def test_drafted_tokens_as_rows_of_one_sequence_say_what_single_ones_say(model: PagedModel) -> None:
    said(model, row(PROMPT[:40], 0, [1, 2, 3, 4]))
    rows = [row(PROMPT[past : past + 1], past, [1, 2, 3, 4], 8) for past in range(40, 50)]
    for past, logits in zip(range(40, 50), said(model, *rows), strict=True):
        np.testing.assert_allclose(logits, expected(PROMPT[: past + 1]), atol=TOLERANCE)


def test_a_step_started_ahead_computes_what_the_last_one_chose(model: PagedModel) -> None:
    greedy = [PagedRow(PROMPT, 0, [1, 2, 3, 4, 5], 0), PagedRow(OTHER, 0, [6, 7, 8, 9, 10], 1)]
    history = [list(PROMPT), list(OTHER)]
    for ids, sampled in zip(history, model.run(greedy), strict=True):
        ids.append(sampled.token)
    started = [
        model.start(
            [
                PagedRow(tuple(ids[-1:]), len(ids) - 1, table.blocks, slot)
                for slot, (ids, table) in enumerate(zip(history, greedy, strict=True))
            ]
        )
    ]
    for ahead in range(1, 5):
        rows = [
            PagedRow((0,), len(ids) - 1 + ahead, table.blocks, slot)
            for slot, (ids, table) in enumerate(zip(history, greedy, strict=True))
        ]
        started.append(model.follow([None, rows[1]] if ahead > 2 else rows))
    for step, future in enumerate(started):
        for index, sampled in enumerate(future.result()):
            if step < 3 or index == 1:
                history[index].append(sampled.token)
    for ids in history:
        for end in range(len(ids) - 3, len(ids)):
            logits = expected(ids[:end])
            assert logits.max() - logits[ids[end]] < TOLERANCE, "greedy, up to what half precision rounds"
    assert [len(ids) for ids in history] == [len(PROMPT) + 4, len(OTHER) + 6]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row([384], 0, [1]), "outside the vocabulary"),
        (row([-1], 0, [1]), "outside the vocabulary"),
        (row([], 0, [1]), "empty|tokens|arg"),
        (row([1] * 17, 0, [1]), "do not fit 1 blocks"),
        (row([1], 256, list(range(1, 18))), "exceed 256"),
        (row([1], 0, [64]), "no such blocks"),
        (row([1], 0, [-1]), "no such blocks"),
        (row([1], 0, [1], 9), "no slot 9"),
    ],
)
def test_what_would_read_or_write_elsewhere_is_refused(model: PagedModel, bad: PagedRow, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        model.start([bad])
    assert said(model, row(PROMPT, 0, [1, 2, 3, 4])).shape == (1, 384), "and it goes on"


def test_what_cannot_be_marked_as_had_is_a_fault_of_the_next_run(model: PagedModel) -> None:
    model.saw(99, [5])  # there is no such sequence
    run = model.start([row(PROMPT, 0, [1, 2, 3, 4])])
    with pytest.raises(Exception, match="indice = 99"):
        run.result()
    assert said(model, row(PROMPT, 0, [1, 2, 3, 4]))[0].any()
