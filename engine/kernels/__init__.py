"""Operators of our own for ONNX Runtime's CPU provider, at the rate of the processor's int8 units.

`lib/` has a library for each system, made by `build.py`; who runs Llamacord needs no compiler. Where there is
none for a system, or the processor lacks the instructions, ONNX Runtime's own operators compute.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import sys
from pathlib import Path

_log = logging.getLogger(__name__)

_LIBRARIES = Path(__file__).parent / "lib"
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_ENDINGS = {"linux": "so", "win32": "dll", "darwin": "dylib"}
_NAMES = {"avx512": "AVX-512 VNNI"}
_OFF = "off"
SWITCH = "LLAMACORD_KERNELS"
"""This variable of the environment, set to "off", leaves everything to ONNX Runtime."""


def library() -> Path | None:
    """Return the library for this machine; None where there is none, or where it is switched off."""
    return _opened()[0]


def instructions() -> str | None:
    """Return the name of the instructions that the operators use here; None where there are none."""
    return _opened()[1]


def has_attention() -> bool:
    """Tell whether the library has attention beside products."""
    return _opened()[2]


def describe() -> str:
    """Say whose operators multiply by weights of 4 and 8 bits on the CPU."""
    name = instructions()
    if name is not None:
        return f"Llamacord's own, with {name}"
    return "ONNX Runtime's own" + (f" ({SWITCH}=off)" if _choice() == _OFF else "")


def _choice() -> str:
    return os.environ.get(SWITCH, "").strip().lower()


def _opened() -> tuple[Path | None, str | None, bool]:
    return (None, None, False) if _choice() == _OFF else _open()


@functools.cache
def _open() -> tuple[Path | None, str | None, bool]:
    machine = _MACHINES.get(platform.machine().lower(), platform.machine().lower())
    path = _LIBRARIES / f"llamacord-{sys.platform}-{machine}.{_ENDINGS.get(sys.platform, 'so')}"
    if not path.is_file():
        return None, None, False
    try:
        opened = ctypes.CDLL(str(path))
        opened.llamacord_instructions.restype = ctypes.c_char_p
        name = opened.llamacord_instructions()
        has_attention = bool(opened.llamacord_has_attention())
    except (OSError, AttributeError) as error:
        _log.warning("The library of fast products cannot be used: %s", error)
        return None, None, False
    if name is None:
        return None, None, False
    return path, _NAMES.get(name.decode("ascii"), name.decode("ascii")), has_attention
