"""Servers in this process that all go on with the same answer, wherever it stands, and fail as told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.opening import open_folder
from engine.remote.description import Cabinet, Description, FileListed, RemoteModel
from engine.remote.remote_engine import RemoteEngine, Servers
from engine.remote.wire import MAX_REPLY_BYTES, Patience, RefusedError, WireError
from engine.text.text_files import TextFiles
from engine.types import ChatMessage, EngineLoad, ModelInfo, Prompt, SamplingParams
from tests.engine.fakes import make_model_folder

ANSWER = "Grüße! Once upon a time there was a small model,\n  and it said: 你好 🙂. The end."
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=400)
CONTEXT = 2048
PATIENCE = Patience(away_s=600.0)
QUESTION = (ChatMessage("user", "Tell me a story."),)


def text_files(folder: Path, chat_format: str = "chatml") -> TextFiles:
    """Return the files of a tiny model."""
    return TextFiles.of(open_folder(make_model_folder(folder / chat_format, chat_format=chat_format)))


def model_of(files: TextFiles) -> RemoteModel:
    """Return what a client knows of it."""
    listed = tuple(FileListed(name, entry.size, entry.sha256) for name, entry in files.entries.items())
    description = Description(files.fingerprint, "tiny", "fp32", "cpu", {}, 16, CONTEXT, listed)
    text = files.open()
    info = ModelInfo("tiny", "fp32", "cpu", text.chat.format, CONTEXT, text.chat.default_system_prompt)
    return RemoteModel(description, text, info)


def described(files: TextFiles) -> dict[str, Any]:
    """Return what a server says of it."""
    return {
        "fingerprint": files.fingerprint,
        "info": {"name": "tiny", "precision": "fp32", "provider": "cpu", "sampling": {"temperature": 0.5}},
        "kv_page": 16,
        "max_tokens": CONTEXT,
        "files": [
            {"name": name, "size": entry.size, "sha256": entry.sha256}
            for name, entry in files.entries.items()
        ],
    }


def report(**changes: Any) -> dict[str, Any]:
    """Return how a server says that it is."""
    load = dataclasses.asdict(EngineLoad(0, 4, 0, 0, 4 * CONTEXT)) | changes.pop("load", {})
    return {"health": "ready", "draining": False, "num_waiting": 0, "load": load, "instance": "i"} | changes


def event(told: object) -> bytes:
    """Return one event."""
    return b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"


def ending(reason: str = "stop", num_new: int = 3) -> bytes:
    """Return the last two events."""
    took = {
        "num_prompt_tokens": 9,
        "num_cached_tokens": 5,
        "num_computed_tokens": 4,
        "num_new_tokens": num_new,
    }
    took |= {"finish_reason": reason, "time_to_first_token_s": 0.1, "duration_s": 0.2}  # type: ignore[dict-item]
    choice = {"index": 0, "text": "", "finish_reason": reason}
    return event({"choices": [choice], "llamacord": took}) + b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Fault:
    """How one request fails. at: after so many bytes of the answer's stream."""

    kind: str
    at: int = 0
    seconds: float = 0.0


@dataclass
class FakeServer:
    """One of them. faults: of its next requests, in order; then all is well."""

    faults: list[Fault] = field(default_factory=list)
    is_up: bool = True
    key_is_known: bool = True
    report: dict[str, Any] = field(default_factory=report)
    asked: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    warmed: list[dict[str, Any]] = field(default_factory=list)
    num_forgotten: int = 0
    num_gone: int = 0
    """Clients that left before the end."""
    num_running: int = 0


class FakeServers:
    """A `Wire` to them."""

    def __init__(
        self,
        model: RemoteModel,
        prompt: Prompt,
        *,
        num_servers: int = 2,
        answer: str = ANSWER,
        piece_s: float = 0.1,
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.answer = answer
        self.piece_s = piece_s
        self.servers = {f"http://server{number}": FakeServer() for number in range(num_servers)}
        self.gets: Counter[str] = Counter()
        self.is_closed = False

    @property
    def all(self) -> list[FakeServer]:
        return list(self.servers.values())

    @property
    def num_asked(self) -> int:
        return sum(len(server.asked) for server in self.all)

    async def get(self, address: str, path: str, *, max_bytes: int = MAX_REPLY_BYTES) -> bytes:
        server = self._reach(address)
        self.gets[address] += 1
        assert path == "/engine/load"
        told = {"fingerprint": self.model.description.fingerprint} | server.report
        return json.dumps(told).encode()

    async def post(self, address: str, path: str) -> None:
        assert path == "/engine/forget"
        self._reach(address).num_forgotten += 1

    @asynccontextmanager
    async def stream(
        self, address: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        server = self._reach(address)
        json.dumps(body)
        if path == "/engine/warm":
            server.warmed.append(dict(body))
            yield self._warmed()
            return
        assert path == "/v1/completions"
        server.asked.append((dict(body), dict(headers)))
        fault = server.faults.pop(0) if server.faults else Fault("none")
        if fault.kind == "refuse":
            raise WireError("connection refused")
        if fault.kind.isdigit():
            raise RefusedError(int(fault.kind), "no", "", fault.seconds)
        server.num_running += 1
        has_ended = False
        try:
            yield self._chunks(server, self._answer(body), fault)
            has_ended = True
        finally:
            server.num_running -= 1
            server.num_gone += not has_ended

    async def close(self) -> None:
        self.is_closed = True

    def _reach(self, address: str) -> FakeServer:
        server = self.servers[address]
        if not server.is_up:
            raise WireError("connection refused")
        if not server.key_is_known:
            raise RefusedError(401, "Who are you?")
        return server

    async def _warmed(self) -> AsyncIterator[bytes]:
        yield b": \n\n"
        await asyncio.sleep(self.piece_s)
        yield event({"kept": True})

    def _answer(self, body: Mapping[str, Any]) -> bytes:
        """Return the stream of what is left of the answer behind the prompt, which must be its beginning."""
        text, ids = self.model.text, tuple(body["prompt"])
        assert ids[: len(self.prompt.ids)] == self.prompt.ids
        said = ids[len(self.prompt.ids) :]
        so_far = b"".join(text.token_bytes[token] for token in said).decode()
        if said and not self.prompt.is_continued and said[0] in text.tokenizer.opening_space_ids:
            so_far = so_far.removeprefix(" ")
        assert self.answer.startswith(so_far), (so_far, self.answer)
        assert body["is_continued"] is (self.prompt.is_continued or bool(said))
        assert body["max_tokens"] > 0
        rest = self.answer[len(so_far) :]
        pieces = [rest[at : at + 3] for at in range(0, len(rest), 3)]
        events = (
            event({"choices": [{"index": 0, "text": piece, "finish_reason": None}]}) for piece in pieces
        )
        return b": waiting 2\n\n" + b"".join(events) + ending()

    async def _chunks(self, server: FakeServer, stream: bytes, fault: Fault) -> AsyncIterator[bytes]:
        if fault.kind == "none":
            for at in range(0, len(stream), 97):
                await asyncio.sleep(self.piece_s)
                if not server.is_up:
                    raise WireError("connection reset", has_begun=True)
                yield stream[at : at + 97]
            return
        at = fault.at % (stream.index(b'"llamacord"') - 30)
        for start in range(0, at, 97):
            await asyncio.sleep(self.piece_s)
            yield stream[start : min(start + 97, at)]
        if fault.kind == "cut":
            return
        if fault.kind == "error":
            yield b"\n\n" + event({"error": {"message": "It failed."}})
        elif fault.kind == "garbage":
            yield b"\n\ndata: <html>\n\n"
        elif fault.kind == "long":
            yield b"x" * (2**20 + 1)
        elif fault.kind == "stall":
            await asyncio.sleep(PATIENCE.silence_s)
            raise WireError("it says nothing", has_begun=True)
        else:
            raise WireError("connection reset", has_begun=True)


class Remote:
    """An engine over fake servers, and they."""

    def __init__(self, files: TextFiles, folder: Path, *, answer: str = ANSWER, **options: Any) -> None:
        self.model = model_of(files)
        begun = options.pop("begun", "")
        prompt = self.model.text.fit_prompt(QUESTION, CONTEXT - 1, answer_so_far=begun)
        self.prompt = prompt
        self.wire = FakeServers(self.model, prompt, answer=answer, **options)
        self._folder = folder

    @asynccontextmanager
    async def open(self, replicas: tuple[str, ...] = ()) -> AsyncIterator[RemoteEngine]:
        """Give the engine."""
        servers = Servers(
            tuple(self.wire.servers), self._folder, replicas=replicas, secret=b"s", patience=PATIENCE
        )
        async with RemoteEngine(servers, self.wire, self.model, Cabinet(self._folder)) as engine:
            await engine._replicas.until_known()
            yield engine
