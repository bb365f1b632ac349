"""The NVIDIA GPU of this machine, as its driver describes it: what it is called, and how much memory is free.

Asks the driver's own library, which is there wherever a GPU can be used, so that nothing of CUDA need be
loaded to learn that there is none.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NEEDED_DRIVER = 13000
"""CUDA version that ONNX Runtime's libraries are made for, times 1000."""
_OLDEST = (7, 5)
"""Compute capability from which on they have code."""
_PAGED_ATTENTION = (8, 0)
_MAJOR, _MINOR, _MEMORY_KHZ, _MEMORY_BITS = 75, 76, 36, 37
_NO_DEVICE = 100


class NoCudaError(Exception):
    """There is no GPU that can be used; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A GPU.

    capability: its compute capability. total_bytes: its memory. driver: the CUDA version of its driver, times
    1000. bandwidth: bytes a second of its memory, as it is built; about nine tenths of it can be reached.
    """

    name: str
    capability: tuple[int, int]
    total_bytes: int
    driver: int
    bandwidth: float

    @property
    def has_paged_attention(self) -> bool:
        """Whether its generation can run paged attention."""
        return self.capability >= _PAGED_ATTENTION

    def describe(self) -> str:
        """Return name, memory and capability on one line."""
        major, minor = self.capability
        return f"{self.name}, {self.total_bytes / 2**30:.0f} GiB, compute capability {major}.{minor}"


def has_driver() -> bool:
    """Return whether there is an NVIDIA driver, whatever it finds."""
    try:
        _open()
    except NoCudaError:
        return False
    return True


def find_device() -> CudaDevice:
    """Describe the first GPU. Raises `NoCudaError` where none can be used."""
    library = _open()
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    if version.value < _NEEDED_DRIVER:
        raise NoCudaError(
            f"the NVIDIA driver supports CUDA {_dotted(version.value)}, and {_dotted(_NEEDED_DRIVER)} is "
            "needed: update the driver"
        )
    status = library.cuInit(0)
    number = ctypes.c_int()
    if status == 0:
        status = library.cuDeviceGetCount(ctypes.byref(number))
    if status == _NO_DEVICE or (status == 0 and number.value == 0):
        raise NoCudaError("the NVIDIA driver finds no GPU")
    if status:
        raise NoCudaError(f"the NVIDIA driver cannot be used (error {status}): run nvidia-smi and see")
    device = _first_device(library)
    if device.capability < _OLDEST:
        raise NoCudaError(f"{device.describe()} is older than what CUDA {_dotted(_NEEDED_DRIVER)} runs on")
    return device


def free_bytes() -> int:
    """Return the free memory of the first GPU. Raises `NoCudaError`."""
    library = _open()
    library.cuInit(0)
    context = ctypes.c_void_p()
    handle = ctypes.c_int()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _must(library.cuDeviceGet(ctypes.byref(handle), 0))
    _must(library.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    try:
        _must(library.cuCtxPushCurrent_v2(context))
        _must(library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
        _must(library.cuCtxPopCurrent_v2(ctypes.byref(context)))
    finally:
        library.cuDevicePrimaryCtxRelease_v2(handle)
    return free.value


def _open() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NoCudaError("there is no NVIDIA driver") from error


def _first_device(library: ctypes.CDLL) -> CudaDevice:
    handle, value = ctypes.c_int(), ctypes.c_int()
    _must(library.cuDeviceGet(ctypes.byref(handle), 0))
    name = ctypes.create_string_buffer(128)
    _must(library.cuDeviceGetName(name, len(name), handle))
    total = ctypes.c_size_t()
    _must(library.cuDeviceTotalMem_v2(ctypes.byref(total), handle))
    found = {}
    for attribute in (_MAJOR, _MINOR, _MEMORY_KHZ, _MEMORY_BITS):
        _must(library.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle))
        found[attribute] = value.value
    library.cuDriverGetVersion(ctypes.byref(value))
    return CudaDevice(
        name.value.decode(errors="replace"),
        (found[_MAJOR], found[_MINOR]),
        total.value,
        value.value,
        2 * 1e3 * found[_MEMORY_KHZ] * found[_MEMORY_BITS] / 8,  # two transfers a cycle
    )


def _must(status: int) -> None:
    if status:
        raise NoCudaError(f"the NVIDIA driver failed (error {status})")


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
