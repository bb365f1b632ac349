"""A server of a model in a process of its own, which can be killed and started again at the same address."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[3]
START_S = 600.0


class ServerProcess:
    """One server. folder: where it runs, so that it finds no settings of ours. Use it on one event loop."""

    def __init__(self, model: Path, folder: Path, *, threads: int = 1, **settings: object) -> None:
        self._command = [
            sys.executable,
            "-m",
            "engine",
            "serve",
            "--model",
            str(model),
            "--threads",
            str(threads),
        ]
        self._folder = folder
        self._settings = {name: str(value) for name, value in settings.items()}
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """Return where it answers, once it was started."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Return the process's number, None where there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start it and wait until it answers. Raises `RuntimeError`."""
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            "--port",
            str(self._port),
            cwd=self._folder,
            env=self._environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            while line := await process.stdout.readline():
                if found := re.search(rb"http://127\.0\.0\.1:(\d+)", line):
                    self._port = int(found[1])
                    return
        raise RuntimeError("The server ended before it was ready.")

    async def kill(self) -> None:
        """End it at once, as a crash does."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def stop(self) -> None:
        """Let it end by itself."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "LOG_LEVEL": "warning", **self._settings}
