"""What the processor has for a language model's arithmetic: its name and its instruction sets. Only reads."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

_INT8 = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "i8mm": "Arm I8MM",
    "asimddp": "Arm dot product",
}
"""Instructions that multiply 8-bit numbers and add them up, best first, by the kernel's flag."""
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "Arm SVE", "asimd": "Arm NEON"}
_HALF = {"avx512_fp16": "AVX-512 FP16", "amx_fp16": "AMX FP16", "asimdhp": "Arm half precision"}


@dataclass(frozen=True, slots=True)
class Processor:
    """`flags` are the kernel's names of its features; none where the system does not tell."""

    name: str
    flags: frozenset[str] = frozenset()

    @property
    def vectors(self) -> str | None:
        """Return the widest vector instructions."""
        return _first(_VECTORS, self.flags)

    @property
    def int8(self) -> str | None:
        """Return the best instructions for 8-bit weights, None without any of their own."""
        return _first(_INT8, self.flags)

    @property
    def half(self) -> str | None:
        """Return the instructions that compute in half precision, None where it must be widened."""
        return _first(_HALF, self.flags)

    def describe(self) -> str:
        """Return name and abilities on one line."""
        if not self.flags:
            return f"{self.name} (its instruction sets cannot be told here)"
        int8 = self.int8 or "no 8-bit dot product"
        return f"{self.name}: {self.vectors or 'no wide vectors'}, {int8}, {self.half or 'no native fp16'}"


def read_processor(root: Path = Path("/")) -> Processor:
    """Describe the processor that this process runs on."""
    fields: dict[str, str] = {}
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown processor"
    return Processor(name, frozenset((fields.get("flags") or fields.get("Features") or "").split()))


def _first(names: dict[str, str], flags: frozenset[str]) -> str | None:
    return next((name for flag, name in names.items() if flag in flags), None)
