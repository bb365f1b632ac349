"""Products at the rate of a CPU's int8 units: the operator `BlockLinear` for ONNX Runtime, where there is a library for this machine."""

from __future__ import annotations

import os
from pathlib import Path


def library() -> Path | None:
    p = os.environ.get("LLAMACORD_KERNELS_LIB", "/tmp/libk.so")
    return Path(p) if p else None
