"""How many bytes a second a device's memory moves. Imports `onnxruntime`."""

from __future__ import annotations

import time

import numpy as np
import onnxruntime

from engine import machine
from engine.convert.copy_graph import copy_graph
from engine.measuring import memory_bandwidth
from engine.session import open_session

_NUM_BYTES = 2**30
_NUM_WARM, _NUM_TIMED = 3, 10


def device_bandwidth(device: str, num_threads: int = 0) -> float:
    """Return the bytes a second that a copy on "cuda" moves, or that the CPU's threads read.

    Raises `ModelError` where the device cannot be used.
    """
    if device == "cpu":
        return memory_bandwidth(num_threads or machine.num_physical_cores())
    return copy_bandwidth(device)


def copy_bandwidth(
    device: str, num_bytes: int = _NUM_BYTES, kind: type[np.generic] = np.float16, num_threads: int = 1
) -> float:
    """Return the bytes a second, read and written, of a copy of `num_bytes` that stays on `device`.

    `kind` must be a type that the device can change the sign of: the CPU has no float16.
    """
    session = open_session(copy_graph(kind), num_threads, device)
    binding = session.io_binding()
    shape = [num_bytes // np.dtype(kind).itemsize]
    values = [onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0) for _ in range(2)]
    binding.bind_ortvalue_input("values", values[0])
    binding.bind_ortvalue_output("copied", values[1])

    def copy() -> float:
        started = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return time.perf_counter() - started

    for _ in range(_NUM_WARM):
        copy()
    return 2 * num_bytes / min(copy() for _ in range(_NUM_TIMED))
