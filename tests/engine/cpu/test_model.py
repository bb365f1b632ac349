"""The converted decoder on ONNX Runtime against a plain numpy one, and its cache against no cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision
from engine.describing.manifest import load_manifest
from engine.runtime.sampling import FloatArray
from tests.engine.reference_llama import Float64Array, reference_logits
from tests.engine.tiny_model import VOCAB_SIZE, TinySource, make_tiny_model, tiny_config

CONTEXT = 512
NUM_SLOTS = 8
IDS = [int(token) for token in np.random.default_rng(1).integers(0, VOCAB_SIZE, CONTEXT)]
VARIANTS = {"gqa-tied": (2, True), "mha-untied": (4, False)}
LENGTHS = [3, 50, 7, 100, 11, 64, 9, 1]


def open_model(folder: Path, *, num_slots: int = NUM_SLOTS, max_tokens: int = CONTEXT) -> CpuModel:
    return CpuModel(folder, load_manifest(folder), ModelOptions(1, num_slots, max_tokens))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Precision], Path]:
    """Return a maker of model folders by variant and precision, each made once."""
    root = tmp_path_factory.mktemp("models")

    def folder(variant: str, precision: Precision) -> Path:
        path = root / f"{variant}-{precision}"
        if not path.exists():
            num_kv_heads, tied = VARIANTS[variant]
            make_tiny_model(path, precision, num_kv_heads=num_kv_heads, tied=tied)
        return path

    return folder


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(variant: str, folders: Callable[[str, Precision], Path]) -> CpuModel:
    return open_model(folders(variant, Precision.FP32))


@pytest.fixture(scope="module")
def expected(variant: str) -> Float64Array:
    """The reference's logits of every position of `IDS`."""
    num_kv_heads, tied = VARIANTS[variant]
    source = TinySource(tiny_config(num_kv_heads=num_kv_heads, tied=tied))
    return reference_logits(source.config, source.tensor, IDS)


def near(logits: FloatArray, reference: Float64Array) -> bool:
    return bool(np.abs(logits - reference).max() < 1e-4)


@pytest.mark.parametrize("num_tokens", [1, 2, 17, 300, CONTEXT])
def test_prefill_equals_the_reference(model: CpuModel, expected: Float64Array, num_tokens: int) -> None:
    assert expected.std() > 1  # logits that say something
    assert near(model.prefill(3, IDS[:num_tokens], 0), expected[num_tokens - 1])


def test_score_returns_every_position(model: CpuModel, expected: Float64Array) -> None:
    assert near(model.score(0, IDS[:40], 0), expected[:40])
    assert near(model.score(0, IDS[40:300], 40), expected[40:300])


@pytest.mark.parametrize("chunk", [2, 16, 37])
def test_chunked_prefill_is_bit_identical(model: CpuModel, expected: Float64Array, chunk: int) -> None:
    whole = model.prefill(0, IDS[:120], 0).copy()
    for start in range(0, 120, chunk):
        logits = model.prefill(1, IDS[start : min(start + chunk, 120)], start)
        assert near(logits, expected[min(start + chunk, 120) - 1])
    np.testing.assert_array_equal(logits, whole)


def test_cached_decode_equals_the_reference(model: CpuModel, expected: Float64Array) -> None:
    model.prefill(2, IDS[:20], 0)
    for position in range(20, 52):
        logits = model.decode(2, [IDS[position]], [position])
        assert near(logits[0], expected[position])


def test_ragged_batches_equal_the_reference(model: CpuModel, expected: Float64Array) -> None:
    lengths = list(LENGTHS)
    for slot, length in enumerate(lengths):
        model.prefill(slot, IDS[:length], 0)
    for _ in range(12):
        logits = model.decode(0, [IDS[length] for length in lengths], lengths)
        assert near(logits, expected[lengths])
        lengths = [length + 1 for length in lengths]


@pytest.mark.parametrize("precision", Precision)
def test_decode_rows_do_not_depend_on_the_batch(
    variant: str, folders: Callable[[str, Precision], Path], precision: Precision
) -> None:
    model = open_model(folders(variant, precision))
    for slot, length in enumerate(LENGTHS):
        model.prefill(slot, IDS[:length], 0)
    ids = [IDS[length] for length in LENGTHS]
    together = model.decode(0, ids, LENGTHS).copy()
    if precision is not Precision.INT4:  # whose kernel for a single row is another one
        for slot, length in enumerate(LENGTHS):
            np.testing.assert_array_equal(model.decode(slot, [ids[slot]], [length])[0], together[slot])
    for first, end in ((0, 2), (2, 5), (1, 8)):
        window = model.decode(first, ids[first:end], LENGTHS[first:end])
        np.testing.assert_array_equal(window, together[first:end])


def test_a_prefill_between_decode_steps_disturbs_nobody(model: CpuModel, expected: Float64Array) -> None:
    model.prefill(0, IDS[:30], 0)
    model.prefill(1, IDS[:8], 0)
    decoded = model.decode(0, [IDS[30]], [30])
    prefilled = model.prefill(1, IDS[8:25], 8)
    assert near(decoded[0], expected[30])  # not overwritten by the prefill
    assert near(prefilled, expected[24])
    assert near(model.decode(0, [IDS[31], IDS[25]], [31, 25]), expected[[31, 25]])


def test_rewinding_is_exact(model: CpuModel, expected: Float64Array) -> None:
    model.prefill(0, [*IDS[:20], *reversed(IDS[:100])], 0)
    assert near(model.prefill(0, IDS[20:60], 20), expected[59])


def test_copied_and_swapped_slots_continue_alike(model: CpuModel, expected: Float64Array) -> None:
    model.prefill(0, IDS[:40], 0)
    model.prefill(5, IDS[:9], 0)
    model.kv.copy(0, 3, 25)
    assert near(model.decode(3, [IDS[25]], [25])[0], expected[25])
    model.kv.swap(0, 5, 40, 9)
    assert near(model.decode(0, [IDS[9]], [9])[0], expected[9])
    assert near(model.decode(5, [IDS[40]], [40])[0], expected[40])


def test_memory_given_back_is_freed_and_the_slot_works_again(
    model: CpuModel, expected: Float64Array, variant: str
) -> None:
    model.prefill(4, IDS[:200], 0)
    model.prefill(3, IDS[:10], 0)
    model.prefill(5, IDS[:10], 0)
    assert model.kv.arrays[0][4].any()
    before = _resident_bytes()
    model.kv.give_back(4)
    freed = before - _resident_bytes()
    assert not any(array[4].any() for array in model.kv.arrays)
    written = sum(array[4, :, :200].nbytes for array in model.kv.arrays)
    assert freed > 0.8 * written
    assert near(model.prefill(4, IDS[:50], 0), expected[49])
    for neighbour in (3, 5):
        assert near(model.decode(neighbour, [IDS[10]], [10])[0], expected[10])


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("max_tokens", [100, CONTEXT])
def test_a_full_slot_may_ride_along_as_a_filler(
    variant: str, folders: Callable[[str, Precision], Path], expected: Float64Array, max_tokens: int
) -> None:
    model = open_model(folders(variant, Precision.FP32), max_tokens=max_tokens)
    model.prefill(0, IDS[:max_tokens], 0)
    for slot in (1, 2):
        model.prefill(slot, IDS[:10], 0)
    logits = model.decode(0, [0, IDS[10], IDS[10]], [max_tokens, 10, 10])
    assert near(logits[1:], expected[[10, 10]])
    assert near(model.decode(0, [IDS[max_tokens - 1]], [max_tokens - 1])[0], expected[max_tokens - 1])


def test_int8_stays_close_to_fp32(variant: str, folders: Callable[[str, Precision], Path]) -> None:
    exact, rounded = (
        _log_softmax(open_model(folders(variant, precision)).score(0, IDS, 0).astype(np.float64))
        for precision in (Precision.FP32, Precision.INT8)
    )
    divergence = (np.exp(exact) * (exact - rounded)).sum(axis=-1)
    assert 0 < divergence.mean() < 0.01
    assert (exact.argmax(axis=-1) == rounded.argmax(axis=-1)).mean() > 0.9


def _log_softmax(logits: Float64Array) -> Float64Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Float64Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
