"""What a client must know of a model that runs somewhere else: fetched once, checked, and kept on disk."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelFormatError
from engine.files import from_json
from engine.remote.wire import Wire, WireError, parse_object
from engine.text.model_text import ModelText
from engine.text.text_files import TextFiles
from engine.types import RANGES, ModelInfo, SamplingParams, tokens_needed

MAX_FILE_BYTES = 256 * 2**20
"""Of a tokenizer."""
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class FileListed:
    """A file that a server offers."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Description:
    """What a server says of its model. kv_page: of how many tokens room is taken at once.

    max_tokens: the longest prompt and answer together.
    """

    fingerprint: str
    name: str
    precision: str
    provider: str
    sampling: Mapping[str, float]
    kv_page: int
    max_tokens: int
    files: tuple[FileListed, ...]

    @classmethod
    def read(cls, body: bytes) -> Description:
        """Read what a server says, which may be anything. Raises `ModelFormatError`."""
        try:
            told = parse_object(body)
            info: dict[str, Any] = told["info"]
            description: Description = from_json(
                cls,
                {
                    "fingerprint": told["fingerprint"],
                    "name": str(info["name"])[:200],
                    "precision": str(info["precision"])[:40],
                    "provider": str(info["provider"])[:80],
                    "sampling": info.get("sampling") or {},
                    "kv_page": told["kv_page"],
                    "max_tokens": told["max_tokens"],
                    "files": [{key: one[key] for key in ("name", "size", "sha256")} for one in told["files"]],
                },
                "the description",
            )
            description.check()
        except WireError as error:
            raise ModelFormatError(f"It is no server of this kind: {error}.") from error
        except KeyError as error:
            raise ModelFormatError(f"It is no server of this kind: its description lacks {error}.") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelFormatError(f"It is no server of this kind: {error}.") from error
        return description

    def check(self) -> None:
        """Raise `ValueError` for what cannot be."""
        if not _HASH.fullmatch(self.fingerprint):
            raise ValueError("its fingerprint is none")
        if not 1 <= self.kv_page <= 2**16 or not 2 <= self.max_tokens <= 2**24:
            raise ValueError("what it says about tokens cannot be")
        for name, value in self.sampling.items():
            if name not in RANGES or not math.isfinite(value):
                raise ValueError(f"it advises to sample with {name[:40]!r}")
            RANGES[name].check(name, value)
        if not 1 <= len(self.files) <= 8:
            raise ValueError("it does not offer the files that are needed")
        for file in self.files:
            if not _NAME.fullmatch(file.name) or not _HASH.fullmatch(file.sha256):
                raise ValueError("it offers files without proper names")
            if not 0 <= file.size <= MAX_FILE_BYTES:
                raise ValueError(f"{file.name} is too large")


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that runs somewhere else, ready to have prompts made for it."""

    description: Description
    text: ModelText
    info: ModelInfo

    def tokens_needed(self, num_prompt: int, params: SamplingParams) -> int:
        """Return what an answer may come to need, as the server counts it."""
        return tokens_needed(num_prompt, params, self.description.max_tokens, self.description.kv_page)


class Cabinet:
    """Keeps the files of models on disk by fingerprint. chosen: a chat format in the place of the model's."""

    def __init__(self, folder: Path, chosen: str = "") -> None:
        self._folder = folder
        self._chosen = chosen

    async def fetch(self, wire: Wire, address: str) -> RemoteModel:
        """Learn what a server has, fetch what is not here yet, and open it.

        Raises `WireError`, `RefusedError`, and `ModelFormatError` where what comes is not what it should be.
        """
        body = await wire.get(address, "/engine/model")
        description = Description.read(body)
        folder = self._folder / description.fingerprint
        try:
            for file in description.files:
                if not await asyncio.to_thread(_is_there, folder, file):
                    path = f"/engine/files/{file.name}"
                    content = await wire.get(address, path, max_bytes=file.size)
                    await asyncio.to_thread(_keep, folder, file, content)
            model = await asyncio.to_thread(self._open, description)
            await asyncio.to_thread(self._note, address, body)
        except OSError as error:
            raise ModelFormatError(
                f"{folder} cannot be written: {error.strerror}. Check LLAMA_CACHE."
            ) from error
        return model

    def known(self, address: str) -> RemoteModel | None:
        """Return the model that a server had when it was last asked, None where that is unknown. Blocking."""
        try:
            return self._open(Description.read(self._note_of(address).read_bytes()))
        except (OSError, ModelFormatError):
            return None

    def _open(self, description: Description) -> RemoteModel:
        files = TextFiles.load(self._folder / description.fingerprint)
        if files.fingerprint != description.fingerprint:
            raise ModelFormatError(
                "Its files are not those of its fingerprint: bot and server may be of different versions."
            )
        text = files.open(self._chosen)
        info = ModelInfo(
            name=description.name,
            precision=description.precision,
            provider=description.provider,
            chat_format=text.chat.format,
            context_length=description.max_tokens,
            default_system_prompt=text.chat.default_system_prompt,
            reasoning=text.reasoning,
            ends_turns=text.ends_turns,
            thinks=text.thinks,
            switched=text.switched,
            sampling={
                name: int(value) if name == "top_k" else value for name, value in description.sampling.items()
            },
        )
        return RemoteModel(description, text, info)

    def _note(self, address: str, body: bytes) -> None:
        _write(self._note_of(address), body)

    def _note_of(self, address: str) -> Path:
        return self._folder / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.json"


def _is_there(folder: Path, file: FileListed) -> bool:
    try:
        return hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
    except OSError:
        return False


def _keep(folder: Path, file: FileListed, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ModelFormatError(f"{file.name} does not come as its checksum says.")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / file.name, content)


def _write(path: Path, content: bytes) -> None:
    """Write a file at once: others may read it meanwhile."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # in containers all have one number
    partial.write_bytes(content)
    partial.replace(path)
