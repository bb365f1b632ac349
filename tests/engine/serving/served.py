"""A served engine without a network: a scripted engine, the app over it, and clients that speak ASGI."""

from __future__ import annotations

import asyncio
import atexit
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from engine.opening import open_folder
from engine.serving.app import App, make_app
from engine.serving.service import ServingSettings
from engine.text.text_files import TextFiles
from engine.types import ChatMessage, Generation, Prompt, SamplingParams
from tests.engine.fakes import make_model_folder
from tests.fakes import Script, ScriptedEngine
from tests.virtual_time import run

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDLESS = Script(("word ",), delay_s=0.1, loops=True)
"""Says something ten times a second until it is cancelled."""


@cache
def text_files() -> TextFiles:
    """Return those of a tiny model."""
    folder = Path(tempfile.mkdtemp(prefix="llamacord-served-"))
    atexit.register(shutil.rmtree, folder)
    model: Any = open_folder(make_model_folder(folder / "model"))
    return TextFiles.of(model)


@dataclass
class ServedScripts(ScriptedEngine):
    """A scripted engine that can be served: an id is a byte."""

    vocab_size: int = 256
    kv_page: int = 1

    def encode(self, text: str) -> Prompt:
        return Prompt(tuple(text.encode(errors="replace")), is_continued=True)

    def text_files(self) -> TextFiles:
        return text_files()

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        session: str = "",
        tell: Callable[[int], object] | None = None,
    ) -> Generation:
        self._fitted.setdefault(prompt.ids, (ChatMessage("user", bytes(prompt.ids).decode()),))
        return super().generate(prompt, params, session=session, tell=tell)


@dataclass
class Answer:
    """What a client got so far."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def comments(self) -> list[str]:
        return [line for line in self.body.decode().splitlines() if line.startswith(":")]

    @property
    def events(self) -> list[Any]:
        """The events of a stream, without its last one where that says that it is whole."""
        lines = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def is_done(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")

    @property
    def text(self) -> str:
        """The text of a stream."""
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return "".join(one["delta"].get("content", "") if "delta" in one else one["text"] for one in choices)


class Call:
    """One request to an app. `leave` closes its connection."""

    def __init__(
        self, app: App, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.answer = Answer()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        fields = {"content-type": "application/json"} | (headers or {})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8324),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))
        self.reads = asyncio.Event()
        """Cleared: the client reads nothing."""
        self.reads.set()

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def done(self) -> Answer:
        await self.task
        return self.answer

    async def _receive(self) -> dict[str, Any]:
        return await self._incoming.get()

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.answer.status = message["status"]
            self.answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.answer.body += message.get("body", b"")
            if not message.get("more_body", False):
                self.answer.is_whole = True
                self._incoming.put_nowait({"type": "http.disconnect"})


class Client:
    """Asks an app."""

    def __init__(self, app: App, **headers: str) -> None:
        self.app = app
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def begin(self, path: str, body: object = None, method: str = "POST", **headers: str) -> Call:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return Call(self.app, method, path, raw, self._headers | given)

    async def post(self, path: str, body: object = None, **headers: str) -> Answer:
        return await self.begin(path, body, **headers).done()

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.begin(path, None, "GET", **headers).done()

    async def chat(self, *said: str, **fields: Any) -> Answer:
        return await self.post(CHAT, question(*said, **fields))

    def begin_chat(self, *said: str, session: str = "", **fields: Any) -> Call:
        return self.begin(CHAT, question(*said, **fields), x_session_id=session)


def question(*said: str, **fields: Any) -> dict[str, Any]:
    """Return a body that asks something: user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(said or ("Hello?",))]
    return {"messages": messages} | fields


def served(
    scene: Callable[[Client, ServedScripts], Awaitable[None]],
    engine: ServedScripts | None = None,
    settings: ServingSettings | None = None,
    **headers: str,
) -> None:
    """Play a scene with a served engine in virtual time; nothing may be left running behind it."""

    async def play() -> None:
        scripts = engine or ServedScripts()
        app = make_app(scripts, settings or ServingSettings())
        await scene(Client(app, **headers), scripts)
        assert scripts.num_running == 0
        assert app.service.room.num_in_line == 0
        assert app.service.num_open == 0

    playing: Coroutine[Any, Any, None] = play()
    run(playing)
