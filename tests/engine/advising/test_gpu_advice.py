"""Advice for a GPU: what fits it, and which precision serves the expected load."""

from __future__ import annotations

import dataclasses

import pytest

from engine.advising.advice import Fit, Load
from engine.advising.gpu_advice import GpuAdvice, advise_gpu
from engine.describing.architecture import LLAMA_2_SIZES, Precision
from engine.describing.footprint import gpu_weight_bytes
from engine.machine.cuda_device import CudaDevice

GIB = 2**30
SEVEN_B = LLAMA_2_SIZES["Llama 2 7B"]
H100 = CudaDevice("H100", (9, 0), 80 * GIB, 13000, 3.35e12)
T4 = CudaDevice("T4", (7, 5), 16 * GIB, 13000, 3.2e11)


def advise(
    device: CudaDevice, conversations: int, *, free: float | None = None, has_4_bits: bool = False
) -> GpuAdvice:
    free_bytes = device.total_bytes if free is None else int(free * GIB)
    return advise_gpu(SEVEN_B, device, free_bytes, Load(conversations, 4096), has_4_bits=has_4_bits)


def chosen(advice: GpuAdvice) -> Precision | None:
    return None if advice.chosen is None else advice.chosen.precision


def test_weights_take_what_they_have_in_half_precision() -> None:
    assert gpu_weight_bytes(SEVEN_B, Precision.FP16) == pytest.approx(13.48e9, rel=0.01)
    assert gpu_weight_bytes(SEVEN_B, Precision.INT8) == pytest.approx(6.74e9 * (1 + 2 / 32), rel=0.02)
    assert gpu_weight_bytes(SEVEN_B, Precision.INT4) == pytest.approx(3.37e9 * (1 + 2 / 16) + 1.3e8, rel=0.03)


@pytest.mark.parametrize(("rows", "precision"), [(1, "int4"), (8, "int8"), (128, "fp16")])
def test_few_bits_are_for_few_conversations_where_all_fit(rows: int, precision: str) -> None:
    device = dataclasses.replace(H100, total_bytes=1000 * GIB)
    assert chosen(advise(device, rows)) == precision


def test_the_estimate_is_near_what_was_measured() -> None:
    for option, single in zip(advise(H100, 1).candidates, (168, 240, 320), strict=True):
        assert option.single == pytest.approx(single, rel=0.25), option.precision


def test_what_fits_at_once_is_counted() -> None:
    advice = advise(H100, 64)
    assert advice.kv == 2 * GIB, "4096 tokens of half a MiB"
    assert [option.num_fitting for option in advice.candidates] == [32, 35, 37]


def test_a_small_gpu_gets_few_bits_and_hears_that_its_attention_is_slower() -> None:
    advice = advise(T4, 4)
    assert [option.fit for option in advice.candidates] == [Fit.NO, Fit.YES, Fit.YES]
    assert chosen(advice) == "int4"
    assert "T4 has no paged attention" in " ".join(advice.sentences)


def test_where_nothing_fits_the_cpu_is_named() -> None:
    advice = advise(dataclasses.replace(T4, total_bytes=4 * GIB), 1)
    assert advice.chosen is None
    assert "Even int4 does not fit T4" in advice.sentences[0]
    assert "It runs on the CPU." in advice.sentences[0]


def test_memory_that_others_use_is_told() -> None:
    advice = advise(H100, 1, free=4.0)
    assert {option.fit for option in advice.candidates} == {Fit.NOT_NOW}
    assert "Other programs use H100's memory now" in advice.sentences[-1]


def test_weights_of_four_bits_stay_as_they_are() -> None:
    assert chosen(advise(H100, 128, has_4_bits=True)) == "int4"
