"""Serves the app with uvicorn until the process is told to end; the only file that imports `uvicorn`.

The first SIGTERM or Ctrl-C lets running answers end within the grace, the second one ends them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.errors import EngineError
from engine.serving.app import App

if sys.platform != "win32":
    import resource

_log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 32 * 2**10
REQUEST_TIMEOUT_S = 20.0
"""How long a connection may be open without a whole head of a request; between requests longer."""
KEEP_ALIVE_S = 75
"""Longer than clients keep theirs, which would else send a request into a connection that is being closed."""
MAX_CONNECTIONS = 1000
"""Whoever has one more gets 503."""
MAX_OPEN = 2 * MAX_CONNECTIONS
"""More are closed at once. Without files left, asyncio would fill the log with what it cannot accept."""
_BACKLOG = 1024
_NUM_FILES = 8192
"""More than all connections with a whole backlog and the engine's own files."""
_DEAD_CLIENTS = {
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,
}
"""A host that went without a word is missed after half a minute, a client that reads nothing after one."""


class AddressError(EngineError):
    """The address cannot be listened on. The message is a sentence for the operator."""


class _Protocol(H11Protocol):
    """Closes connections on which no request comes at first, or one that comes by drops."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_OPEN:
            transport.abort()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()
        elif getattr(before, "response_complete", True):  # of the next head only a part is here
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(REQUEST_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn's own answer to them refuses connections at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: App, host: str, port: int, *, on_ready: Callable[[str], None]) -> None:
    """Serve `app` until SIGTERM or SIGINT; `on_ready` gets the address. Raises `AddressError`."""
    listener = _listen(host, port)
    _allow_files()
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
        backlog=_BACKLOG,
    )
    server = _Server(config)
    stop = asyncio.Event()

    def end() -> None:
        if stop.is_set():
            server.should_exit = True
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C then ends it at once
            loop.add_signal_handler(number, end)
    serving = asyncio.ensure_future(server.serve([listener]))
    closing = asyncio.ensure_future(_close(app, server, stop))
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn tells it in no other way
            await asyncio.sleep(0.01)
        on_ready(_url(host, listener.getsockname()[1]))
        await serving
    finally:
        closing.cancel()
        server.should_exit = True
        await asyncio.wait({serving})
        listener.close()


async def _close(app: App, server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    _log.info("Closing: running answers end, and no new ones begin")
    if not await app.service.drain():
        _log.warning("Some answers did not end within the grace; they are cut off")
    server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError, OverflowError) as error:
        why = getattr(error, "strerror", None) or "this is no address of this machine"
        raise AddressError(f"{host} port {port} cannot be listened on: {why}. Choose another one.") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _DEAD_CLIENTS.items():
        with contextlib.suppress(AttributeError, OSError):  # not every system has each
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listener


def _allow_files() -> None:
    """Have the system let us have as many files as we may come to need, where it lets us choose."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _NUM_FILES if hard == resource.RLIM_INFINITY else min(_NUM_FILES, hard)
    if soft < wanted and soft != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
