"""The libraries are made of the sources that lie beside them, and what cannot be used is left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine import kernels
from engine.kernels import build


def test_the_libraries_are_those_of_the_sources() -> None:
    assert build.STAMP.read_text(encoding="ascii").strip() == build.sources_digest(), (
        "The sources have changed: python -m engine.kernels.build"
    )
    assert {path.name for path in build.LIBRARIES.iterdir()} == {*build.TARGETS, build.STAMP.name}


def test_they_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SWITCH, "off")
    assert (kernels.library(), kernels.instructions(), kernels.has_attention()) == (None, None, False)
    assert kernels.describe() == "ONNX Runtime's own (LLAMACORD_KERNELS=off)"


@pytest.mark.parametrize(
    ("name", "said"), [("AVX-512 VNNI", "Llamacord's own, with AVX-512 VNNI"), (None, "ONNX Runtime's own")]
)
def test_people_are_told_whose_operators_compute(
    monkeypatch: pytest.MonkeyPatch, name: str | None, said: str
) -> None:
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr(kernels, "instructions", lambda: name)
    assert kernels.describe() == said


def test_instructions_that_a_processor_lacks_leave_the_work_to_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(kernels.SWITCH, "mmx")
    assert kernels.library() is None
    assert not kernels.has_attention()
    assert kernels.describe() == "ONNX Runtime's own (LLAMACORD_KERNELS=mmx)"


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF", b"not a library at all"])
def test_a_library_that_cannot_be_loaded_leaves_the_work_to_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    shutil.copytree(build.LIBRARIES, tmp_path, dirs_exist_ok=True)
    for library in build.TARGETS:
        (tmp_path / library).unlink()
        if content is not None:
            (tmp_path / library).write_bytes(content)
    monkeypatch.setattr(kernels, "_LIBRARIES", tmp_path)
    kernels._open.cache_clear()
    try:
        assert kernels.library() is None
    finally:
        kernels._open.cache_clear()
