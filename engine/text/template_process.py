"""The process that renders a model's chat template: started when needed, ended when it takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import ModelFormatError, PromptError
from engine.types import ChatMessage

MAX_SECONDS = 10
_PROGRAM = Path(__file__).with_name("chat_template.py")
"""Run, never imported: jinja2 takes a start 15 ms."""
_MAX_TEMPLATE_CHARACTERS = 200_000
_ENVIRONMENT = ("LANG", "LC_", "LD_", "PATH", "PYTHON", "SYSTEMROOT", "TZ")
"""What a process needs to start, and no secrets."""


class Rendered(NamedTuple):
    """What a template made of a dialog: text, or the reason why there is none."""

    text: str
    error: str | None = None


class TemplateProcess:
    """Renders dialogs with one template. Safe to call from any thread.

    The process ends with this object or with the program; where it ended before, because it took too long or
    somebody killed it, the next call starts a new one.
    """

    def __init__(self, template: str, tokens: dict[str, str]) -> None:
        """Raises `ModelFormatError` for a template that cannot be read."""
        if len(template) > _MAX_TEMPLATE_CHARACTERS:
            raise ModelFormatError("The model's chat template is too long to be one.")
        self._first = {"template": template, "tokens": tokens}
        self._lock = threading.Lock()
        self._start()

    def render(
        self, dialogs: Sequence[Sequence[ChatMessage]], switches: Mapping[str, bool] | None = None
    ) -> list[Rendered]:
        """Render each dialog; `switches` are variables of the template's own.

        Raises `PromptError` when that takes too much time or memory.
        """
        written = [[{"role": one.role, "content": one.content} for one in dialog] for dialog in dialogs]
        request = {"dialogs": written, "switches": dict(switches or {})}
        with self._lock:
            if self._process.poll() is not None:
                self._start()
            answers = self._ask(request)
        return [Rendered(answer.get("text", ""), answer.get("error")) for answer in answers]

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env={name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)},
            )
        except OSError as error:
            raise ModelFormatError(
                f"The chat template's process could not be started: {error.strerror}."
            ) from error
        self._end = weakref.finalize(self, _end, self._process)
        try:
            answer = self._ask(self._first)
        except PromptError as error:
            raise ModelFormatError(str(error)) from error
        if "error" in answer:
            self._end()
            raise ModelFormatError(f"The model's chat template cannot be read: {answer['error']}.")

    def _ask(self, request: object) -> Any:
        process = self._process
        timer = threading.Timer(MAX_SECONDS, process.kill)
        timer.start()
        try:
            if process.stdin is None or process.stdout is None:
                raise OSError("no pipes")
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        except (OSError, ValueError) as error:
            self._end()
            raise PromptError("The model's chat template takes too much time or memory.") from error
        finally:
            timer.cancel()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with contextlib.suppress(OSError):  # a broken pipe has still something to write
        process.communicate()
