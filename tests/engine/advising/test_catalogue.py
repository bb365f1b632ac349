"""The catalogue: its shapes are those of the models, and what it says of a machine follows from them."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

from engine.__main__ import main
from engine.advising.advice import Fit
from engine.advising.catalogue import ENTRIES, Entry, held_by_q4_k_m, on_this_machine, pick
from engine.commands import models
from engine.convert.gguf_config import ARCHITECTURES
from engine.describing.architecture import Precision
from engine.describing.footprint import disk_bytes
from engine.hub.address import HubAddress
from engine.machine.cuda_device import CudaDevice
from engine.machine.machine import Processor, Resources

PUBLISHED = {
    "Qwen2.5 0.5B": 0.494,
    "Llama 3.2 1B": 1.24,
    "Qwen2.5 1.5B": 1.54,
    "Llama 3.2 3B": 3.21,
    "Phi-4-mini 3.8B": 3.84,
    "Gemma 3 4B": 3.88,
    "Qwen3 4B": 4.02,
    "Llama 2 7B Chat": 6.74,
    "Mistral 7B v0.3": 7.25,
    "Llama 3.1 8B": 8.03,
    "Qwen3 8B": 8.19,
    "Mistral Nemo 12B": 12.25,
    "Phi-4 14B": 14.66,
    "Mistral Small 24B": 23.57,
}
"""Milliards of parameters on the models' cards; of Gemma without the part for images."""
GIB = 2**30


def machine(memory: int, free: int | None = None) -> Resources:
    return Resources(memory * GIB, (memory if free is None else free) * GIB, 8, Processor("a processor"))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_shapes_are_those_of_the_models(entry: Entry) -> None:

    assert entry.shape.num_parameters / 1e9 == pytest.approx(PUBLISHED[entry.name], rel=0.006)


def test_sizes_are_those_of_a_conversion_to_the_byte() -> None:
    # A file in the shape of Llama 3.2 3B with the types that llama.cpp gives a Q4_K_M file became this large.
    shape = next(entry.shape for entry in ENTRIES if entry.name == "Llama 3.2 3B")
    assert disk_bytes(shape, Precision.INT4, held_by_q4_k_m(shape)) == 2_948_444_160


def test_each_entry_can_be_pulled_as_it_is_written() -> None:
    assert len({entry.address for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert HubAddress.parse(entry.address) == HubAddress(entry.repository, "Q4_K_M")
        assert entry.architecture in ARCHITECTURES


@pytest.mark.parametrize(
    ("memory", "bandwidth", "expected"),
    [
        (1, 20e9, None),
        (2, 40e9, "Qwen2.5 0.5B"),
        (4, 40e9, "Llama 3.2 1B"),
        (6, 40e9, "Llama 3.2 3B"),
        (8, 40e9, "Gemma 3 4B"),
        (12, 40e9, "Llama 3.1 8B"),
        (16, 10e9, "Llama 3.2 1B"),
        (16, 40e9, "Llama 3.1 8B"),
        (16, 60e9, "Mistral Nemo 12B"),
        (16, 1e8, "Qwen2.5 0.5B"),
        (16, None, "Mistral Nemo 12B"),
        (64, 500e9, "Mistral Small 24B"),
    ],
)
def test_the_largest_that_fits_and_is_fast_enough_is_picked(
    memory: int, bandwidth: float | None, expected: str | None
) -> None:
    best = pick(on_this_machine(machine(memory), bandwidth))
    assert (best.entry.name if best else None) == expected


def test_what_other_programs_take_is_not_there() -> None:
    found = {one.entry.name: one for one in on_this_machine(machine(32, free=4), 40e9)}
    assert found["Llama 3.1 8B"].fit is Fit.NOT_NOW
    best = pick(tuple(found.values()))
    assert best is not None
    assert best.entry.name == "Llama 3.2 1B"


def test_a_gpu_counts_by_its_own_memory_and_speed() -> None:
    device = CudaDevice("a GPU", (8, 9), 12 * GIB, 13000, 500e9)
    found = {one.entry.name: one for one in on_this_machine(machine(4), 1e9, device)}
    assert found["Llama 3.1 8B"].fit is Fit.YES
    assert found["Mistral Small 24B"].fit is Fit.NO
    assert found["Llama 3.1 8B"].speed == pytest.approx(85, rel=0.25)
    best = pick(tuple(found.values()))
    assert best is not None
    assert best.entry.name == "Mistral Nemo 12B"


def test_sizes_grow_with_the_models_and_speed_falls() -> None:
    found = [one for one in on_this_machine(machine(64), 40e9) if one.entry.is_pick]
    for smaller, larger in itertools.pairwise(found):
        assert smaller.disk_bytes < larger.disk_bytes
        assert smaller.memory_bytes < larger.memory_bytes
        assert (smaller.speed or 0) > (larger.speed or 0)


def test_the_command_names_the_line_to_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(models, "resources", lambda: machine(6))
    monkeypatch.setattr(models, "memory_bandwidth", lambda _threads: 40e9)
    monkeypatch.setattr(models, "_device", lambda: None)
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert "Llama 3.2 3B suits this machine" in said
    assert "\nMODEL=hf:bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M\n" in said
    assert "reads 40 GB/s" in said
    for columns in ("80", "120", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["models"]) == 0
        said = capsys.readouterr().out
        for entry in ENTRIES:
            assert entry.name in said
            assert re.search(rf"{re.escape(entry.address)}(\s|$)", said), "whole, to be copied"
            assert entry.good_at in said
            assert entry.licence in said
        table = [line for line in said.splitlines() if line.startswith(tuple("┏┡└│"))]
        assert max(map(len, table)) <= int(columns)
        assert {line[-1] for line in table} <= set("┓┩┘│┃"), "nothing is cut off"
    monkeypatch.setattr(models, "resources", lambda: dataclasses.replace(machine(1), memory_bytes=GIB // 2))
    assert main(["models"]) == 0
    assert "None of them fits here" in capsys.readouterr().out
