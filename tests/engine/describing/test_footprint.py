"""Bytes of models: as computed and as they are once converted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine import kernels
from engine.describing.architecture import LLAMA_2_SIZES, Precision
from engine.describing.footprint import (
    PROCESS_BYTES,
    beside_bytes,
    footprint,
    kv_token_bound,
    kv_token_bytes,
    room_sentence,
    running_weight_bytes,
    size,
    step_bytes,
    weight_bytes,
)
from engine.describing.manifest import WEIGHTS_FILE
from tests.engine.tiny_model import make_tiny_model, tiny_config

LLAMA_2_7B = LLAMA_2_SIZES["Llama 2 7B"]


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("tied", [True, False])
def test_the_size_on_disk_is_what_conversion_writes(tmp_path: Path, precision: Precision, tied: bool) -> None:
    folder = make_tiny_model(tmp_path / "model", precision, tied=tied)
    written = (folder / WEIGHTS_FILE).stat().st_size
    expected = weight_bytes(tiny_config(tied=tied), precision)
    # Tensors begin at whole pages: at most 4 KiB between two of the 22 to 60 there are.
    assert expected <= written + 1024
    assert written < expected + 60 * 4096


def test_llama_2_7b_has_the_sizes_it_is_known_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert weight_bytes(LLAMA_2_7B, Precision.FP32) / 1e9 == pytest.approx(26.95, abs=0.01)
    assert weight_bytes(LLAMA_2_7B, Precision.INT8) / 1e9 == pytest.approx(7.58, abs=0.01)
    need = footprint(LLAMA_2_7B, Precision.INT8, num_kv_tokens=4096)
    is_half = kernels.has_attention()  # which is ours, and keeps KV so where weights have few bits
    assert need.kv == 4096 * 2**20 // (2 if is_half else 1)
    assert footprint(LLAMA_2_7B, Precision.FP16, num_kv_tokens=4096).kv == 4096 * 2**20
    beside = PROCESS_BYTES + beside_bytes(LLAMA_2_7B, Precision.INT8)
    assert need.total == running_weight_bytes(LLAMA_2_7B, Precision.INT8) + need.kv + beside
    if kernels.library() is not None:  # which keeps nothing beside a block's weights and scale
        assert footprint(LLAMA_2_7B, Precision.INT4, num_kv_tokens=0).total / 2**30 == pytest.approx(
            4.2, abs=0.1
        )
    monkeypatch.setenv(kernels.SWITCH, "off")
    assert footprint(LLAMA_2_7B, Precision.INT8, num_kv_tokens=4096).kv == 4096 * 2**20
    assert footprint(LLAMA_2_7B, Precision.INT4, num_kv_tokens=0).total / 2**30 == pytest.approx(5.9, abs=0.1)


def test_a_step_reads_each_weight_once_but_of_a_separate_embedding_next_to_nothing() -> None:
    tied = dataclasses.replace(LLAMA_2_7B, tied_embeddings=True)
    for precision in Precision:
        read = step_bytes(LLAMA_2_7B, precision, num_tokens=0, num_conversations=1)
        assert read == step_bytes(tied, precision, num_tokens=0, num_conversations=1)
        assert read < running_weight_bytes(LLAMA_2_7B, precision)
        with_kv = step_bytes(LLAMA_2_7B, precision, num_tokens=100, num_conversations=3)
        assert with_kv - read == 300 * kv_token_bytes(LLAMA_2_7B, precision)


@pytest.mark.parametrize(
    ("spare_gib", "megabytes", "expected"),
    [
        (64, 0, 8192),
        (8, 0, 6144),
        (4, 0, 3072),
        (0.1, 0, 512),
        (-3, 0, 512),
        (64, 3000, 3000),
        (1, 9000, 8192),
    ],
)
def test_kv_takes_what_is_of_use_and_free_and_one_context_always_fits(
    spare_gib: float, megabytes: int, expected: int
) -> None:
    bound = kv_token_bound(
        LLAMA_2_7B.kv_bytes_per_token(4),
        context=512,
        num_contexts=16,
        spare_bytes=int(spare_gib * 2**30),
        kv_cache_mb=megabytes,
    )
    assert bound == expected


@pytest.mark.parametrize(
    ("num_tokens", "said"),
    [
        (4096, "Room for 1 answer of 4,096 tokens at once, or for up to 8 shorter ones."),
        (3 * 4096 + 5, "Room for 3 answers of 4,096 tokens at once, or for up to 8 shorter ones."),
        (16 * 4096, "Room for 8 answers of 4,096 tokens at once."),
    ],
)
def test_room_is_said_in_answers(num_tokens: int, said: str) -> None:
    assert room_sentence(num_tokens, 4096, 8) == said


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (150 * 2**20, "150 MiB"), (3 * 2**29, "1.5 GiB")],
)
def test_sizes_for_people(number: int, shown: str) -> None:
    assert size(number) == shown
