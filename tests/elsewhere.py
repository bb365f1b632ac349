"""Run as a program: the bot converts a model, checks itself and answers where nothing of POSIX is there.

`SOURCE` are the weights, `MODEL` and `DATABASE` are made. What other systems do not have is taken away first:
whoever uses it nevertheless ends this program with a traceback.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import mmap
import os
import signal
import sys
import types
from typing import Any, NoReturn

import aiosqlite  # noqa: F401 - libraries look at the system themselves, each in its own way
import discord  # noqa: F401
import numpy  # noqa: F401
import onnxruntime  # noqa: F401
import platformdirs  # noqa: F401
import rich.console  # noqa: F401
import tokenizers  # noqa: F401

MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "readline")
OF_OS = (
    "sched_getaffinity",
    "sysconf",
    "geteuid",
    "getuid",
    "getpgid",
    "fork",
    "fchmod",
    "posix_fadvise",
)
OF_SIGNAL = ("SIGHUP", "SIGUSR1", "SIGPIPE", "SIGALRM", "alarm")
_REAL_FSYNC = os.fsync


def take_away() -> None:
    """Make this process's Python look like one on Windows, as far as what we call is concerned."""
    writable = importlib.import_module("fcntl").fcntl

    def fsync(descriptor: int) -> None:
        if not writable(descriptor, 3) & (os.O_WRONLY | os.O_RDWR):  # F_GETFL
            raise OSError(9, "Bad file descriptor")
        _REAL_FSYNC(descriptor)

    def add_signal_handler(*_arguments: Any) -> NoReturn:
        raise NotImplementedError

    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in (
        (os, OF_OS),
        (signal, OF_SIGNAL),
        (mmap, [n for n in dir(mmap) if n[:4] in ("MADV", "MAP_")]),
    ):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    os.fsync = fsync  # type: ignore[assignment]
    asyncio.SelectorEventLoop.add_signal_handler = add_signal_handler  # type: ignore[method-assign, assignment]
    locks = types.ModuleType("msvcrt")
    locks.LK_NBLCK, locks.locking = 2, lambda *_arguments: None  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = locks
    system, sys.platform = sys.platform, "win32"
    importlib.import_module("storage.opening")
    importlib.import_module("engine.machine.cuda_device")
    sys.platform = system


def main() -> int:
    """Convert a model, look at everything, answer a question."""
    take_away()
    from pathlib import Path

    from bot.cli import main as run
    from bot.config import ignore_early_signals
    from engine.convert.converter import convert, open_source
    from engine.describing.architecture import Precision

    convert(open_source(Path(os.environ["SOURCE"])), Path(os.environ["MODEL"]), Precision.INT8)
    ignore_early_signals()
    code = run(["check"])
    sys.stdin = io.StringIO("Hello there\n")
    return code or run(["chat"])


if __name__ == "__main__":
    sys.exit(main())
