"""The GPU as its driver describes it, or why there is none."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from engine.machine.cuda_device import NoCudaError, find_device, free_bytes, has_driver

GIB = 2**30


class Driver:
    """Stands for the driver's library: every function succeeds unless it is told otherwise."""

    def __init__(self, *, version: int = 13000, count: int = 1, capability: int = 90, **fails: int) -> None:
        self.values = {36: 2619000, 37: 5120, 75: capability // 10, 76: capability % 10}
        self.version, self.count, self.fails = version, count, fails
        self.released = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name in self.fails:
                return self.fails[name]
            target: Any = getattr(arguments[0], "_obj", None) if arguments else None
            if name == "cuDriverGetVersion":
                target.value = self.version
            elif name == "cuDeviceGetCount":
                target.value = self.count
            elif name == "cuDeviceGetAttribute":
                target.value = self.values[arguments[1]]
            elif name == "cuDeviceGetName":
                arguments[0].value = b"Some GPU"
            elif name == "cuDeviceTotalMem_v2":
                target.value = 24 * GIB
            elif name == "cuMemGetInfo_v2":
                target.value = 20 * GIB
            elif name == "cuDevicePrimaryCtxRelease_v2":
                self.released += 1
            return 0

        return call


def use(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    def load(name: str) -> Driver:
        if driver is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return driver

    monkeypatch.setattr("engine.machine.cuda_device.ctypes.CDLL", load)


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(capability=86)
    use(monkeypatch, driver)
    device = find_device()
    assert device.describe() == "Some GPU, 24 GiB, compute capability 8.6"
    assert (device.driver, device.has_paged_attention) == (13000, True)
    assert device.bandwidth == pytest.approx(3.35e12, rel=0.01)
    assert free_bytes() == 20 * GIB
    assert driver.released == 1
    assert has_driver()


def test_an_older_generation_has_no_paged_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Driver(capability=75))
    assert not find_device().has_paged_attention


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (None, "there is no NVIDIA driver"),
        (Driver(version=12040), "supports CUDA 12.4, and 13.0 is needed: update the driver"),
        (Driver(cuInit=100), "finds no GPU"),
        (Driver(count=0), "finds no GPU"),
        (Driver(cuInit=999), r"cannot be used \(error 999\): run nvidia-smi"),
        (Driver(capability=61), "compute capability 6.1 is older than what CUDA 13.0 runs on"),
        (Driver(cuDeviceTotalMem_v2=3), r"failed \(error 3\)"),
    ],
)
def test_why_there_is_none_is_said(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None, reason: str
) -> None:
    use(monkeypatch, driver)
    with pytest.raises(NoCudaError, match=reason):
        find_device()
    assert has_driver() == (driver is not None)


def test_free_memory_that_is_not_told_is_an_error_that_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(cuMemGetInfo_v2=700)
    use(monkeypatch, driver)
    with pytest.raises(NoCudaError, match="error 700"):
        free_bytes()
    assert driver.released == 1


def test_the_real_library_is_asked_by_its_name() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(NoCudaError, match="there is no NVIDIA driver"):
            find_device()
