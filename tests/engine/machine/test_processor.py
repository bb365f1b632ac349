"""Instruction sets, from files as kernels of several machines write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.machine.machine import Processor, read_processor

MACHINES: dict[str, tuple[str, str, str | None, str | None, str | None]] = {
    "server": (
        "model name\t: Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 avx512_fp16\n",
        "Xeon",
        "AVX-512",
        "AMX",
        "AVX-512 FP16",
    ),
    "desktop": ("model name : Core\nflags : avx2 avx_vnni f16c\n", "Core", "AVX2", "AVX VNNI", None),
    "old": ("model name : Old\nflags : sse2\n", "Old", None, None, None),
    "arm": (
        "processor : 0\nFeatures : fp asimd asimdhp asimddp\n",
        "",
        "Arm NEON",
        "Arm dot product",
        "Arm half precision",
    ),
}


@pytest.mark.parametrize(("text", "name", "vectors", "int8", "half"), MACHINES.values(), ids=MACHINES)
def test_what_a_processor_has(
    tmp_path: Path, text: str, name: str, vectors: str | None, int8: str | None, half: str | None
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text, encoding="utf-8")
    found = read_processor(tmp_path)
    assert found.name.startswith(name)
    assert (found.vectors, found.int8, found.half) == (vectors, int8, half)
    assert (int8 or "no 8-bit dot product") in found.describe()


def test_a_system_that_tells_nothing_is_described_too(tmp_path: Path) -> None:
    found = read_processor(tmp_path)
    assert found == Processor(found.name)
    assert found.name
    assert "cannot be told" in found.describe()
