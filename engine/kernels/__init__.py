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

BLOCK_SIZE = 32
"""The operators multiply by blocks of so many weights, which share a scale, and keep nothing else of them."""
_HEAD_SIZES = frozenset({16, 32, 48, 64, 80, 96, 128, 256})
"""The sizes of heads that the library's attention takes."""
_LIBRARIES = Path(__file__).parent / "lib"
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_ENDINGS = {"linux": "so", "win32": "dll", "darwin": "dylib"}
NAMES = {"avx512": "AVX-512 VNNI", "avxvnni": "AVX-VNNI"}
"""What people call the instructions that the operators are made for, by their names in the sources."""
_OFF = "off"
SWITCH = "LLAMACORD_KERNELS"
"""This variable of the environment, set to "off", leaves everything to ONNX Runtime.

Set to a key of `NAMES`, it asks for other instructions than the best.
"""


def library() -> Path | None:
    """Return the library for this machine; None where there is none, or where it is switched off."""
    return _opened()[0]


def instructions() -> str | None:
    """Return the name of the instructions that the operators use here; None where there are none."""
    return _opened()[1]


def has_attention() -> bool:
    """Tell whether the library has attention beside products."""
    return _opened()[2]


def attends(head_size: int) -> bool:
    """Tell whether the library has attention, and takes heads of this size."""
    return has_attention() and head_size in _HEAD_SIZES


def describe() -> str:
    """Say whose operators multiply by weights of 4 and 8 bits on the CPU."""
    name = instructions()
    if name is not None:
        return f"Llamacord's own, with {name}"
    return "ONNX Runtime's own" + (f" ({SWITCH}={_choice()})" if _choice() else "")


def _choice() -> str:
    return os.environ.get(SWITCH, "").strip().lower()


def _opened() -> tuple[Path | None, str | None, bool]:
    path, opened = _open()
    if path is None or opened is None or _choice() == _OFF:
        return None, None, False
    name = opened.llamacord_choose(os.fsencode(_choice()))
    if name is None:
        return None, None, False
    return path, NAMES.get(name.decode(), name.decode()), bool(opened.llamacord_has_attention())


@functools.cache
def _open() -> tuple[Path | None, ctypes.CDLL | None]:
    machine = _MACHINES.get(platform.machine().lower(), platform.machine().lower())
    path = _LIBRARIES / f"llamacord-{sys.platform}-{machine}.{_ENDINGS.get(sys.platform, 'so')}"
    if not path.is_file():
        return None, None
    try:
        opened = ctypes.CDLL(str(path))
        opened.llamacord_choose.argtypes = [ctypes.c_char_p]
        opened.llamacord_choose.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        _log.warning("The library of fast products cannot be used: %s", error)
        return None, None
    return path, opened
