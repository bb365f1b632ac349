"""The lock against two programs on one database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import DatabaseUnavailableError
from storage.opening import locked

HOLD = """
import sys
from pathlib import Path
from storage.opening import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_whoever_comes_second_is_told_and_may_come_in_after_the_first(path: Path) -> None:
    with locked(path):
        with pytest.raises(DatabaseUnavailableError, match="Another Llamacord is running"), locked(path):
            pass
        with locked(path.with_name("other.sqlite3")):
            pass
    with locked(path):
        pass


def test_a_process_that_is_killed_leaves_no_lock(path: Path) -> None:
    program = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # noqa: S603
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DatabaseUnavailableError), locked(path):
            pass
        other.kill()
    with locked(path):
        pass


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseUnavailableError, match="folder"), locked(tmp_path / "file" / "db.sqlite3"):
        pass
