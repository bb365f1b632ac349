"""Advice: what fits, what is recommended, what is said of it."""

from __future__ import annotations

import pytest

from engine.advising.advice import Advice, Blocks, Fit, Load, Speed, advise
from engine.describing.architecture import DecoderConfig, Precision
from engine.machine.machine import Processor, Resources

BIG = DecoderConfig(32, 4096, 11008, 32, 32, 128, 32000, 4096, 1e4, 1e-5, tied_embeddings=False)
SMALL = DecoderConfig(30, 576, 1536, 9, 3, 64, 49152, 8192, 1e5, 1e-5, tied_embeddings=True)
GIB = 2**30
VNNI = Processor("fast", frozenset({"avx512f", "avx512_vnni"}))
SHORT = Load(8, 512)
PLAIN = Processor("plain", frozenset({"avx2"}))


def advice(
    config: DecoderConfig,
    memory_gib: float,
    *,
    free_gib: float | None = None,
    load: Load = SHORT,
    processor: Processor = VNNI,
    speeds: dict[Precision, Speed] | None = None,
    has_4_bits: bool = False,
) -> Advice:
    free = None if free_gib is None else int(free_gib * GIB)
    machine = Resources(int(memory_gib * GIB), free, 2, processor)
    return advise(config, machine, load, speeds or {}, Blocks(has_4_bits))


def test_eight_bits_are_the_safe_choice() -> None:
    for config in (BIG, SMALL):
        found = advice(config, 64)
        assert found.chosen is found.option(Precision.INT8)
        assert found.sentences[0].startswith("int8 suits this machine")
        assert {option.fit for option in found.candidates} == {Fit.YES}


def test_a_small_model_keeps_8_bits_unless_its_weights_have_4_already() -> None:
    fast = {Precision.INT8: Speed(1, 2, 1), Precision.INT4: Speed(2, 4, 1)}
    for speeds in ({}, fast):
        rounded, exact = (advice(SMALL, 64, speeds=speeds, has_4_bits=has) for has in (False, True))
        assert rounded.chosen is rounded.option(Precision.INT8)
        assert any("much of what it knows" in sentence for sentence in rounded.sentences)
        assert exact.chosen is exact.option(Precision.INT4)
        assert any("keeps them as they are" in sentence for sentence in exact.sentences)
    big = advice(BIG, 64, speeds=fast)
    assert big.chosen is big.option(Precision.INT4)


def test_half_precision_is_never_recommended() -> None:
    found = advice(SMALL, 64, speeds={Precision.FP16: Speed(9, 9, 9)})
    assert found.chosen is not found.option(Precision.FP16)
    assert any("fp16 is no faster" in sentence for sentence in found.sentences)


def test_the_fastest_measured_is_chosen() -> None:
    speeds = {Precision.FP32: Speed(9, 90, 1), Precision.INT8: Speed(10, 20, 1)}
    found = advice(SMALL, 64, speeds=speeds)
    assert found.chosen is found.option(Precision.FP32)
    assert "90 tokens/s for 8 conversations together and 9 for one" in found.sentences[0]


def test_what_does_not_fit_is_not_chosen_however_fast() -> None:
    found = advice(BIG, 12, speeds={Precision.FP32: Speed(9, 90, 1), Precision.INT8: Speed(1, 2, 1)})
    assert found.option(Precision.FP32).fit is Fit.NO
    assert found.chosen is found.option(Precision.INT8)


def test_where_nothing_fits_the_least_need_is_told() -> None:
    found = advice(BIG, 2)
    assert found.chosen is None
    assert {option.fit for option in found.candidates} == {Fit.NO}
    (sentence,) = found.sentences
    assert "GiB of memory, but there are only 2.0 GiB" in sentence


def test_memory_that_other_programs_hold_is_told() -> None:
    found = advice(BIG, 64, free_gib=3)
    assert found.chosen is not None
    assert found.chosen.fit is Fit.NOT_NOW
    assert any("Only 3.0 GiB are free now" in sentence for sentence in found.sentences)


@pytest.mark.parametrize(("processor", "expected"), [(VNNI, False), (PLAIN, True), (Processor("?"), False)])
def test_a_processor_without_8_bit_products_is_told(processor: Processor, expected: bool) -> None:
    found = advice(SMALL, 64, processor=processor)
    assert any("no 8-bit dot product" in sentence for sentence in found.sentences) is expected


def test_more_kv_than_there_is_memory_for_is_told_and_not_counted() -> None:
    few, many = advice(BIG, 64, load=Load(1, 512)), advice(BIG, 32, load=Load(8, 4096))
    assert not any("KV" in sentence for sentence in few.sentences)
    assert many.chosen is not None
    held = many.chosen.memory.kv // 2**20
    assert 4096 < held < 8 * 4096
    expected = f"32.0 GiB of KV, but there is memory for only {held} tokens, so questions wait for room."
    assert any(expected in sentence for sentence in many.sentences)
    assert many.chosen.memory.total < 0.9 * 32 * GIB
    assert many.candidates[0].memory.kv < held * 2**20, "fp32 leaves less room beside it"


def test_no_conversation_is_longer_than_the_models_context() -> None:
    assert advice(BIG, 64, load=Load(1, 100_000)).load.num_tokens == 4096
