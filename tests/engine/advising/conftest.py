"""Advice follows from the machine: here from one without instructions for our own operators."""

from __future__ import annotations

import pytest

from engine import kernels


@pytest.fixture(autouse=True)
def plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SWITCH, "off")
