"""Takes the text out of a PDF or a Word document. The only file that imports `pypdf`, a program of its own.

Documents come from anybody. So this runs as a process for one document each (`document_reader.py` starts it),
which bounds its own memory and time, writes no file and is ended when it takes too long. It imports nothing
else of the bot. It reads a document from its input, and writes JSON lines: the number of pages, the text of
each page as it comes, and how it ended. A document that is not made of pages is one page.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import zipfile
from collections.abc import Iterator
from typing import IO, Any
from xml.parsers import expat

import pypdf
import pypdf.errors

MAX_PAGES = 50
MAX_CHARACTERS = 64 * 1024
MAX_SECONDS = 20
"""Whoever started this ends it after half as long."""
MAX_MEMORY_BYTES = 512 * 2**20
MAX_XML_BYTES = 64 * 2**20
_CHUNK_BYTES = 64 * 1024
_WORD_TEXT = "word/document.xml"


class ProblemError(Exception):
    """Why there is no text: `locked`, `not_text` or `broken`."""


class WordText:
    """Collects the text of a Word document from its XML as it comes. Nothing is expanded or looked up."""

    def __init__(self, max_characters: int) -> None:
        self.pieces: list[str] = []
        self.num_left = max_characters
        self._is_text = False
        self._num_fallbacks = self._num_cells = 0
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def _refuse(self, *_declaration: object) -> None:
        """A document has no document type; an attack by entities needs one."""
        raise ProblemError("broken")

    def _start(self, name: str, _attributes: dict[str, str]) -> None:
        tag = name.rpartition(" ")[2]
        self._is_text = tag == "t"
        self._num_fallbacks += tag == "Fallback"
        self._num_cells += tag == "tc"
        if tag in ("br", "cr", "tab"):
            self._add("\t" if tag == "tab" else "\n")

    def _end(self, name: str) -> None:
        tag = name.rpartition(" ")[2]
        self._is_text = False
        self._num_fallbacks -= tag == "Fallback"
        self._num_cells -= tag == "tc"
        if tag == "p":
            self._add(" " if self._num_cells else "\n")
        elif tag in ("tc", "tr"):
            self._add("| " if tag == "tc" else "\n")

    def _characters(self, text: str) -> None:
        if self._is_text:
            self._add(text)

    def _add(self, text: str) -> None:
        if not self._num_fallbacks:  # a fallback says again what stands before it
            self.pieces.append(text[: max(0, self.num_left)])
            self.num_left -= len(text)


def word_pages(data: bytes) -> Iterator[dict[str, Any]]:
    """Give the text of a Word document. Raises `ProblemError`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if _WORD_TEXT not in archive.namelist():
                raise ProblemError("not_text")
            with archive.open(_WORD_TEXT) as file:
                text, is_cut = _word_text(file)
    except (zipfile.BadZipFile, NotImplementedError, expat.ExpatError, EOFError) as error:
        raise ProblemError("broken") from error
    except RuntimeError as error:  # how zipfile says that a password is needed
        raise ProblemError("locked") from error
    yield {"pages": 1}
    yield {"text": text, "is_cut": is_cut}


def _word_text(file: IO[bytes]) -> tuple[str, bool]:
    words = WordText(MAX_CHARACTERS)
    num_bytes = 0
    while chunk := file.read(_CHUNK_BYTES):
        num_bytes += len(chunk)
        words.parser.Parse(chunk)
        if words.num_left < 0 or num_bytes > MAX_XML_BYTES:
            return "".join(words.pieces), True
    words.parser.Parse(b"", True)
    return "".join(words.pieces), False


def pdf_pages(data: bytes) -> Iterator[dict[str, Any]]:
    """Give the text of each page of a PDF. Raises `ProblemError`."""
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ProblemError("locked")
        num_pages = len(reader.pages)
    except pypdf.errors.DependencyError as error:  # a cipher that is not installed
        raise ProblemError("locked") from error
    yield {"pages": num_pages}
    num_left = MAX_CHARACTERS
    for number in range(min(num_pages, MAX_PAGES)):
        text = _page_text(reader, number)
        yield {"text": text[:num_left], "is_cut": len(text) > num_left}
        num_left -= len(text)
        if num_left <= 0:
            break


def _page_text(reader: Any, number: int) -> str:
    try:
        return str(reader.pages[number].extract_text())
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - one page that is broken does not hide the others
        return ""


def _limit() -> None:
    """Bound memory, time and what is written, as far as the system knows how."""
    if hasattr(signal, "alarm"):
        signal.alarm(MAX_SECONDS)
    if hasattr(os, "nice"):
        os.nice(10)  # whoever waits for an answer goes first
    with contextlib.suppress(ImportError):
        import resource

        limits = (
            (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
            (resource.RLIMIT_CPU, MAX_SECONDS),
            (resource.RLIMIT_FSIZE, 0),
        )
        for limit, value in limits:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(limit, (value, value))


def main() -> None:
    """Read one document."""
    _limit()
    data = sys.stdin.buffer.read()
    end: dict[str, Any] = {"end": ""}
    try:
        for line in pdf_pages(data) if sys.argv[1] == "pdf" else word_pages(data):
            print(json.dumps(line), flush=True)
    except ProblemError as problem:
        end = {"end": str(problem)}
    except Exception:  # noqa: BLE001 - the document is foreign; a recursion without end is one of its faults
        end = {"end": "broken"}
    print(json.dumps(end), flush=True)


if __name__ == "__main__":
    main()
