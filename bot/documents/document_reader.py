"""Reads a PDF or a Word document in a process of its own, which is ended when it takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import unicodedata
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from bot.documents.file_bytes import FileKind, cleaned

MAX_SECONDS = 10.0
_PROGRAM = Path(__file__).with_name("extract.py")
_ENVIRONMENT = ("LANG", "LC_", "LD_", "PATH", "PYTHON", "SYSTEMROOT", "TZ")
"""What a process needs to start, and no secrets."""

_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}


class Problem(StrEnum):
    """Why there is no text of a document."""

    NONE = ""
    LOCKED = "locked"
    NOT_TEXT = "not_text"
    """A file of a kind that is not read."""
    EMPTY = "empty"
    """No text in it: its pages are pictures, say."""
    BROKEN = "broken"
    """It cannot be read, or not in time."""


@dataclass(frozen=True, slots=True)
class Document:
    """What was read: the first `num_read` of `num_pages` pages. `is_cut`: the last one not to its end.

    ends: where in the text each of these pages ends.
    """

    text: str = ""
    num_read: int = 0
    num_pages: int = 0
    is_cut: bool = False
    problem: Problem = Problem.NONE
    ends: tuple[int, ...] = field(default=(), compare=False)

    def beginning(self, num_characters: int) -> Document:
        """Return as many whole pages as have so many characters, or less than one page."""
        if num_characters >= len(self.text):
            return self
        num_whole = sum(end <= num_characters for end in self.ends)
        word_end = max(self.text.rfind(gap, 0, num_characters) for gap in " \n")
        end = self.ends[num_whole - 1] if num_whole else max(word_end, 0) or num_characters
        ends = self.ends[:num_whole] or (end,)
        return replace(
            self, text=self.text[:end].rstrip(), num_read=len(ends), is_cut=not num_whole, ends=ends
        )


def read_document(data: bytes, kind: FileKind, *, max_seconds: float = MAX_SECONDS) -> Document:
    """Return the text of a document, or the problem. Takes up to `max_seconds`; for a thread."""
    try:
        process = subprocess.Popen(  # noqa: S603 - a fixed command
            [sys.executable, "-P", str(_PROGRAM), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)},
        )
    except OSError:
        return Document(problem=Problem.BROKEN)
    timer = threading.Timer(max_seconds, process.kill)
    timer.start()
    try:
        output, _ = process.communicate(data)
    finally:
        timer.cancel()
    return document_of(output)


def document_of(output: bytes) -> Document:
    """Return what the program's lines say; a last line that is not whole was never said. Pure."""
    said: list[dict[str, Any]] = []
    with contextlib.suppress(ValueError):
        for line in output.splitlines():
            said.append(json.loads(line))  # noqa: PERF401 - those before a broken one count
    end = next((line["end"] for line in said if "end" in line), None)
    texts = [line for line in said if "text" in line]
    num_pages = next((line["pages"] for line in said if "pages" in line), 0)
    text, ends = "", []
    for page in (_tidy(line["text"]) for line in texts):
        text = f"{text}\n\n{page}" if text and page else text or page
        ends.append(len(text))
    if text:
        is_cut = any(line["is_cut"] for line in texts)
        document = Document(text, len(texts), num_pages, is_cut=is_cut, ends=tuple(ends))
        return document.beginning(len(text) - 1) if is_cut and len(texts) > 1 else document
    return Document(num_pages=num_pages, problem=_problem(end))


def _problem(end: str | None) -> Problem:
    if end is None:
        return Problem.BROKEN
    return Problem(end) if end else Problem.EMPTY


def _tidy(text: str) -> str:
    """Return the text of a page without what only matters on paper, letters that are joined in print, say."""
    lines = cleaned(text).translate(_LIGATURES).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()
