"""Conversion makes a whole model that runs, or leaves nothing, whatever interrupts it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from engine.convert.converter import convert
from engine.convert.source import FloatArray
from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.architecture import Precision, source_shapes
from engine.describing.manifest import load_manifest, verify_files
from engine.errors import ModelFormatError, ModelResourceError
from engine.text.tokenizer import load_tokenizer
from tests.engine.reference_llama import reference_logits
from tests.engine.tiny_model import ChangedSource, TinySource, make_tiny_model, tiny_config

HOUR = 3600
REPOSITORY = Path(__file__).parents[3]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_at(tensor: str, error: BaseException) -> ChangedSource:
    def change(name: str, values: FloatArray) -> FloatArray:
        if name == tensor:
            raise error
        return values

    return ChangedSource(change)


TOLERANCES = {Precision.FP32: 1e-4, Precision.FP16: 0.02, Precision.INT8: 1.0, Precision.INT4: 8.0}
"""Of the tiny model's logits, which have a deviation of about 4."""


@pytest.mark.parametrize("precision", Precision)
def test_a_converted_folder_is_whole_and_runs(tmp_path: Path, precision: Precision) -> None:
    source, folder = TinySource(), tmp_path / "deep" / "er" / "model"
    shares: list[float] = []
    convert(source, folder, precision, shares.append)
    manifest = load_manifest(folder)
    verify_files(folder, manifest, full=True)
    assert manifest.precision is precision
    assert names(folder) == sorted(["manifest.json", *manifest.files])
    assert names(folder.parent) == ["model"]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1
    ids = load_tokenizer(folder, manifest.tokenizer).encode("Hello there")
    logits = CpuModel(folder, manifest, ModelOptions(1, 1, 64)).prefill(0, ids, 0)
    exact = reference_logits(source.config, source.tensor, ids)[-1]
    assert np.abs(logits - exact).max() < TOLERANCES[precision]


def test_conversion_is_reproducible(tmp_path: Path) -> None:
    first, second = (make_tiny_model(tmp_path / name) for name in ("a", "b"))
    assert load_manifest(first).files == load_manifest(second).files
    assert load_manifest(make_tiny_model(tmp_path / "c", seed=1)).files != load_manifest(first).files


def test_every_tensor_is_read(tmp_path: Path) -> None:
    config = tiny_config(tied=False)
    read: set[str] = set()

    def note(name: str, values: FloatArray) -> FloatArray:
        read.add(name)
        return values

    source = ChangedSource(note)
    source.config = config
    convert(source, tmp_path / "model", Precision.INT8)
    assert read == set(source_shapes(config))


class Ending(NamedTuple):
    raised: BaseException
    expected: type[BaseException]


ENDINGS: dict[str, Ending] = {
    "missing tensor": Ending(ModelFormatError("No such tensor."), ModelFormatError),
    "damaged values": Ending(ValueError("cannot reshape"), ModelFormatError),
    "disk full": Ending(OSError(errno.ENOSPC, "No space left on device"), ModelResourceError),
    "interrupt": Ending(KeyboardInterrupt(), KeyboardInterrupt),
    "exit": Ending(SystemExit(1), SystemExit),
    "bug": Ending(RuntimeError("bug"), RuntimeError),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("tensor", ["embed", "layers.2.up", "final_norm"])
def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, tensor: str, ending: Ending) -> None:
    with pytest.raises(ending.expected):
        convert(fail_at(tensor, ending.raised), tmp_path / "model", Precision.INT8)
    assert names(tmp_path) == []
    make_tiny_model(tmp_path / "model")


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    full = fail_at("layers.1.q", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ModelResourceError, match=r"could not be written to .*: No space left on device\.$"):
        convert(full, tmp_path / "model", Precision.INT8)


def test_a_progress_callback_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(TinySource(), tmp_path / "model", Precision.FP32, interrupt)
    assert names(tmp_path) == []


_SLOW_CONVERSION = """
import sys, time
from pathlib import Path
from engine.describing.architecture import Precision, source_shapes
from engine.convert.converter import convert
from tests.engine.tiny_model import TinySource

def pause(share: float) -> None:
    print("layer", flush=True)
    time.sleep(float(sys.argv[2]))

convert(TinySource(), Path(sys.argv[1]), Precision.INT8, pause)
"""


def start_conversion(folder: Path, pause_s: float) -> subprocess.Popen[str]:
    """Convert in another process; it prints a line and pauses after each layer."""
    return subprocess.Popen(  # noqa: S603 - a fixed program
        [sys.executable, "-c", _SLOW_CONVERSION, str(folder), str(pause_s)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_in_the_middle(folder: Path) -> None:
    with start_conversion(folder, 60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "layer\n"
        process.send_signal(signal.SIGKILL)


def test_a_killed_conversion_does_not_disturb_and_is_cleaned_up_later(tmp_path: Path) -> None:
    kill_in_the_middle(tmp_path / "model")
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".model.")
    make_tiny_model(tmp_path / "model")
    assert leftover.exists()  # it might be another process at work
    shutil.rmtree(tmp_path / "model")
    for path in (*leftover.iterdir(), leftover):
        os.utime(path, (time.time() - 2 * HOUR,) * 2)
    make_tiny_model(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_other_old_folders_are_left_alone(tmp_path: Path) -> None:
    others = [".model.backup", ".other.partial-x", "model.partial-x", ".model"]
    for name in others:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - 2 * HOUR,) * 2)
    make_tiny_model(tmp_path / "model")
    assert names(tmp_path) == sorted([*others, "model"])


def test_two_processes_may_convert_at_once(tmp_path: Path) -> None:
    processes = [start_conversion(tmp_path / "model", 0.2) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    assert names(tmp_path) == ["model"]
    verify_files(tmp_path / "model", load_manifest(tmp_path / "model"), full=True)


def test_losing_the_race_is_fine_but_not_to_something_else(tmp_path: Path) -> None:
    winner = make_tiny_model(tmp_path / "winner")

    def while_converting(act: Callable[[], object]) -> None:
        def at_the_end(share: float) -> None:
            if share == 1:
                act()

        convert(TinySource(), tmp_path / "model", Precision.FP32, at_the_end)

    while_converting(lambda: winner.rename(tmp_path / "model"))
    assert names(tmp_path) == ["model"]
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ModelResourceError, match="could not be written"):
        while_converting(lambda: (tmp_path / "model").write_text("a file"))
    assert (tmp_path / "model").read_text() == "a file"
    assert names(tmp_path) == ["model"]
