"""The ASGI app: which address does what, and what holds for every request.

It can be served by any server that speaks ASGI; knows none of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from engine.errors import EngineError
from engine.serving.answers import dump, event
from engine.serving.bodies import understood
from engine.serving.errors import ApiError, refusal
from engine.serving.exchange import (
    ClientGoneError,
    Exchange,
    send_error,
    until_gone,
)
from engine.serving.keys import ANYBODY, ApiKey
from engine.serving.metrics import CONTENT_TYPE
from engine.serving.requests import Asked, ServedEngine, read_chat, read_completion, read_warm
from engine.serving.service import Record, Service, ServingSettings
from engine.serving.streaming import EventStream
from engine.tracing import HEADER, new_trace, traced
from engine.types import Prompt

_log = logging.getLogger(__name__)

SESSION = "x-session-id"
MAX_WARMINGS = 16
CLIENT_GONE = 499
"""The status in log and figures where nobody is there to get one, as nginx has it."""
_MAX_SESSION_CHARACTERS = 256
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OURS = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?")
_RECORD = "llamacord.record"
_PAGES: dict[str, Any] = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["*"],
    "expose_headers": [HEADER, "Retry-After"],
}
"""What pages in browsers may send and see, where they may ask at all."""

Read = Callable[[bytes, ServedEngine], Asked]


def make_app(engine: ServedEngine, settings: ServingSettings) -> App:
    """Return the app that serves an engine. Call it on the event loop that is to serve it."""
    return App(Service(engine, settings))


class App:
    """The app. `service` is what it serves."""

    def __init__(self, service: Service) -> None:
        self.service = service
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/chat/completions", _Answers(service, read_chat), methods=["POST"]),
            Route("/v1/completions", _Answers(service, read_completion), methods=["POST"]),
            Route("/engine/model", self._description),
            Route("/engine/files/{name}", self._file),
            Route("/engine/load", self._load),
            Route("/engine/warm", _Warming(service), methods=["POST"]),
            Route("/engine/forget", self._forget, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        pages = {"allow_origins": ["*"]} if service.settings.keys else {"allow_origin_regex": _OURS.pattern}
        self._app = Starlette(
            routes=routes,
            middleware=[Middleware(CORSMiddleware, **pages, **_PAGES)],
            exception_handlers={ApiError: _api_error, HTTPException: _http_error},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; write what came of it into the log and the figures, never what was said."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[_RECORD] = Record(_request_id(scope))
        with traced(record.request_id):
            await self._serve(record, scope, receive, send)

    async def _serve(self, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = asyncio.get_running_loop().time()
        status = 0
        id_header = (HEADER.encode(), record.request_id.encode())

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), id_header]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except (ClientGoneError, ClientDisconnect):
            status = CLIENT_GONE
        except Exception:  # noqa: BLE001 - a bug ends its request and no other
            _log.exception("A request failed")
            if not status:
                await send_error(send_with_id, ApiError(500, "This server has made an error.", code="error"))
        finally:
            took_s = asyncio.get_running_loop().time() - began_s
            is_asking = scope["method"] == "POST"
            self.service.metrics.ended(record.key, status or CLIENT_GONE)
            _log.log(
                logging.INFO if is_asking else logging.DEBUG,
                "%.64r key=%s status=%d took=%.3fs%s",
                scope["path"],
                record.key,
                status or CLIENT_GONE,
                took_s,
                record.tokens,
            )

    async def _models(self, request: Request) -> Response:
        self._admit(request)
        return _json({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        self._admit(request)
        if request.path_params["name"] != self.service.engine.info.name:
            raise ApiError(404, "There is no such model here.", code="model_not_found", param="model")
        return _json(self._described())

    def _described(self) -> dict[str, Any]:
        info = self.service.engine.info
        return {
            "id": info.name,
            "object": "model",
            "created": self.service.created,
            "owned_by": "llamacord",
            "max_model_len": info.context_length,
        }

    async def _description(self, request: Request) -> Response:
        self._admit(request)
        engine, files = self.service.engine, self.service.files
        info = dataclasses.asdict(engine.info)
        return _json(
            {
                "fingerprint": self.service.fingerprint,
                "info": info | {"sampling": dict(engine.info.sampling)},
                "kv_page": engine.kv_page,
                "max_tokens": engine.info.context_length,
                "files": [{"name": name, **dataclasses.asdict(file)} for name, file in files.entries.items()],
            }
        )

    async def _file(self, request: Request) -> Response:
        self._admit(request)
        files, name = self.service.files, request.path_params["name"]
        if name not in files.entries:
            raise ApiError(404, "There is no such file here.", code="not_found")
        tag = f'"{files.entries[name].sha256}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"etag": tag})
        content = await asyncio.to_thread(files.read, name)
        return Response(content, media_type="application/octet-stream", headers={"etag": tag})

    async def _load(self, request: Request) -> Response:
        self._admit(request)
        service = self.service
        return _json(
            {
                "health": str(service.engine.health),
                "draining": service.is_draining,
                "num_waiting": service.room.num_in_line,
                "load": dataclasses.asdict(service.engine.load),
                "fingerprint": service.fingerprint,
                "instance": service.instance,
            }
        )

    async def _forget(self, request: Request) -> Response:
        key = self._admit(request)
        with self.service.keys_besides.using(key, asyncio.get_running_loop().time()):
            await self.service.forget()
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _health(self, _request: Request) -> Response:
        state = self.service.state
        status = HTTPStatus.OK if state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
        return _json({"status": state}, status)

    async def _metrics(self, request: Request) -> Response:
        if not self.service.settings.is_private or "origin" in request.headers:
            self._admit(request)
        return Response(self.service.metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    def _admit(self, request: Request) -> ApiKey:
        return _admit(self.service, request)


class _Answers:
    """Where answers are asked for. read: what makes sense of a body."""

    def __init__(self, service: Service, read: Read) -> None:
        self._service = service
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, service = Request(scope, receive), self._service
        key = _admit(service, request)
        service.check_open()
        with service.keys.using(key, asyncio.get_running_loop().time()):
            asked = await understood(service, request, self._read)
            service.check_open()
            # A pair, so that no session is taken for a key or for another key's session of that name.
            keys = (key.name, (key.name, _session(request) or asked.user))
            await Exchange(service, asked, keys, scope[_RECORD], receive, send).run()


class _Warming:
    """Where a prompt is computed ahead, for as long as the client stays and nobody asks for an answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, service = Request(scope, receive), self._service
        key = _admit(service, request)
        service.check_open()
        with service.keys_besides.using(key, asyncio.get_running_loop().time()):
            prompt = await understood(service, request, read_warm)
            if self._num_open >= MAX_WARMINGS:
                raise ApiError(429, "Too much is computed ahead already.", code="too_many", retry_after_s=1)
            await self._warm(prompt, receive, send)

    async def _warm(self, prompt: Prompt, receive: Receive, send: Send) -> None:
        stream = EventStream(send)

        async def work() -> None:
            try:
                warming = self._service.engine.warm(prompt)
            except EngineError as error:
                raise refusal(error) from error
            try:
                is_kept = await warming
            except asyncio.CancelledError:
                warming.cancel()
                await warming
                raise
            await stream.send(event({"kept": is_kept}), is_last=True)

        self._num_open += 1
        try:
            await until_gone(asyncio.ensure_future(work()), receive, stream.keep_alive())
        finally:
            self._num_open -= 1


def _admit(service: Service, request: Request) -> ApiKey:
    """Return whose request this is. Raises `ApiError`."""
    key = service.keys.find(request.headers.get("authorization"))
    request.scope[_RECORD].key = key.name
    origin = request.headers.get("origin")
    if key is ANYBODY and origin is not None and not _OURS.fullmatch(origin):
        # Any page that somebody has open in a browser could ask otherwise.
        raise ApiError(403, "Pages of other hosts may only ask with a key. Set ENGINE_KEYS.", code="origin")
    return key


def _session(request: Request) -> str:
    session = str(request.headers.get(SESSION, ""))
    if len(session) > _MAX_SESSION_CHARACTERS:
        raise ApiError(400, f"{SESSION} must have at most {_MAX_SESSION_CHARACTERS} characters.")
    return session


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == HEADER.encode()), b"").decode(
        "latin-1"
    )
    return str(given) if _ID.fullmatch(given) else new_trace()


async def _api_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return Response(dump(error.body), error.status, error.headers, "application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """Say in OpenAI's words what Starlette found."""
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    sentences = {
        HTTPStatus.NOT_FOUND: f"There is nothing at {request.url.path[:64]}.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method} is not possible at {request.url.path[:64]}.",
    }
    told = ApiError(status, sentences.get(status, f"{status.phrase}."))
    return Response(dump(told.body), status, error.headers, "application/json")


def _json(value: object, status: int = HTTPStatus.OK) -> Response:
    return Response(dump(value), status, media_type="application/json")
