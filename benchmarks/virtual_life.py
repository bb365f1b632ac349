"""Lives of the bot in virtual time: the real client, service and storage, one life after the other.

What they share is the database file and a `DiscordPlace`. discord.py runs as it is, over a session that asks
the place directly. A life ends when it is stopped, or at any step of its event loop as if the process were
killed: nothing of it runs on, and no transaction that was open takes effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import selectors
import sqlite3
import sys
import urllib.parse
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Self, cast

import aiohttp
import aiosqlite
from multidict import CIMultiDict

import storage
from bot.conversation.memory import UNDO_TIME
from bot.conversation.service import ChatService
from bot.on_discord.client import LlamacordClient
from bot.on_discord.connection import connect
from bot.operations.metrics import Metrics
from bot.parameters import ChatParameters
from bot.privacy import Keeping, Privacy, Purging, Sweeper
from bot.servers.moderation import Moderation
from bot.servers.rates import Allowance
from engine.types import TextEngine
from storage.conversations import Conversations
from storage.database import Database
from storage.migrations import MIGRATIONS
from storage.opening import open_connection
from storage.people import People
from storage.removals import Removals
from storage.retention import Retention
from storage.settings import SettingsStore
from storage.sqlite import SqliteBackend
from tests.bot.operations.discord_api import LostError, Payload, Reply
from tests.bot.operations.local_discord import DiscordPlace

START_S = 1_800_000_000.0
"""When the first life begins, in seconds since 1970."""
LATENCY_S = (0.03, 0.25)
_OURS = tuple(str(Path(storage.__file__).parents[1] / name) for name in ("bot/", "storage/"))


Place = tuple[tuple[str, int], ...]
"""The innermost lines of ours at which a task waits: file and number of each."""


class KilledError(BaseException):
    """The process is no more."""


class NoSelector(selectors.SelectSelector):
    """Waits for nothing: nothing comes from outside of this world."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:  # noqa: ARG002
        """Return at once."""
        return []


class LifeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which raises `KilledError` at the step `killed_at`.

    Or before, where one of its tasks waits in a place in which none was killed before.
    """

    def __init__(self, now_s: float, killed_in: Counter[Place]) -> None:
        super().__init__(NoSelector())
        self._killed_in = killed_in
        self._clock_resolution = 1e-6  # as fine as such a large number can be
        self.now_s = now_s
        self.num_steps = 0
        self.killed_at: int | None = None

    def time(self) -> float:
        """Return the world's time."""
        return self.now_s

    def run_in_executor(  # type: ignore[override]  # typeshed says it with types that a method cannot have
        self, _executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Do the work at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            future.set_exception(error)
        return future

    def _run_once(self) -> None:
        loop: Any = self
        self.num_steps += 1
        if self.killed_at is not None:
            places = _places(self)
            if self.num_steps >= self.killed_at or any(self._killed_in[place] < 1 for place in places):
                self._killed_in.update(places)
                raise KilledError
        if not loop._ready:
            times = [timer.when() for timer in loop._scheduled if not timer.cancelled()]
            if not times:
                raise RuntimeError("Everybody waits for ever.")
            self.now_s = max(self.now_s, min(times))
        super()._run_once()  # type: ignore[misc]


class World:
    """Discord, the network before it, and the bot's machine."""

    def __init__(
        self, folder: Path, channel_ids: Sequence[int], new_engine: Callable[[], TextEngine], seed: int
    ) -> None:
        self.database = folder / "year.sqlite3"
        self.new_engine = new_engine
        self.random = Random(seed)
        self.now_s = START_S
        self.place = DiscordPlace(
            url="http://discord", now=self._now, heartbeat_ms=1e9, channel_ids=tuple(channel_ids)
        )
        self.is_away = False
        self.lost_share = 0.0
        """Of requests: half are not carried out, of half the answer is lost."""
        self.keeping = Keeping()
        self.loop: LifeLoop | None = None
        self.client: LlamacordClient | None = None
        self.connection: SyncConnection | None = None
        self.killed_in: Counter[Place] = Counter()
        """Where our code was waiting when it was killed."""

    def _now(self) -> float:
        return self.now_s if self.loop is None else self.loop.now_s

    def _utc(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)

    def live(
        self, people: Callable[[asyncio.Event], Coroutine[Any, Any, None]], killed_at: int | None = None
    ) -> bool:
        """Let the bot live until `people` set the event; return whether it came so far: it was not killed.

        `killed_at`: the step at which it is, if that is settled from the beginning. Raises `StartError` where
        it could not begin.
        """
        loop = self.loop = LifeLoop(self.now_s, self.killed_in)
        loop.killed_at = killed_at
        loop.set_exception_handler(lambda *_: None)
        asyncio.set_event_loop(loop)
        is_killed = False
        try:
            loop.run_until_complete(self._live(people))
        except KilledError:
            is_killed = True
            self._bury()
        finally:
            self.now_s = loop.now_s
            self.loop = self.client = None
            loop.close()
        if is_killed:
            self._forget(loop)
        return not is_killed

    async def _live(self, people: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
        stop = asyncio.Event()
        loop = self.loop
        self.connection = SyncConnection(
            open_connection(self.database, 5.0, MIGRATIONS),
            lambda: loop is not None and loop.killed_at is not None,
        )
        async with Database(SqliteBackend(cast("aiosqlite.Connection", self.connection))) as database:
            self.client = await self._client(database)
            asking = asyncio.create_task(people(stop))
            await connect(self.client, "token", stop=stop, on_ready=lambda _: None)
            asking.cancel()
            await asyncio.wait({asking})
            if not asking.cancelled() and (error := asking.exception()) is not None:
                raise error

    async def _client(self, database: Database) -> LlamacordClient:
        conversations = Conversations(database, now=self._utc)
        moderation = Moderation.over(database, conversations, Allowance(per_user=0, per_server=0))
        engine = self.new_engine()
        retention, purging = (
            Retention(database, now=self._utc),
            Purging(conversations, Removals(database), UNDO_TIME, ()),
        )
        sweeper = Sweeper(retention, self.keeping, purging.note, now=self._utc)
        privacy = Privacy(People(database), retention, sweeper, purging)
        chat = ChatService(
            engine,
            conversations,
            SettingsStore(database),
            ChatParameters(max_history_tokens=2048),
            gate=moderation.gate,
            servers=moderation.servers,
            screening=moderation.screening,
        )
        client = LlamacordClient(chat, moderation, privacy, Metrics())
        client.http.connector = cast("aiohttp.BaseConnector", SimpleNamespace())
        return client

    def _bury(self) -> None:
        """Let nothing of a killed life do anything any more."""
        if self.connection is not None:
            self.connection.die()
        if self.client is not None and self.client.ws is not None and self.client.ws._keep_alive is not None:
            self.client.ws._keep_alive.stop()
            self.client.ws._keep_alive.join()
        session = self.place.sessions.get(self.place.session_id)
        if session is not None:
            session.send = None

    def _forget(self, loop: LifeLoop) -> None:
        """Let what is left of a killed life end now, where no loop runs on which it could do anything.

        What is pending is closed, and takes that for a fault that it could handle. From the outside in: left
        to the collector, which begins anywhere, Python 3.11 crashes.
        """
        self.connection = None
        is_disabled, logging.root.manager.disable = logging.root.manager.disable, logging.CRITICAL
        for task in asyncio.all_tasks(loop):
            if (work := task.get_coro()) is not None:
                with contextlib.suppress(BaseException):
                    work.close()
        gc.collect()
        logging.root.manager.disable = is_disabled


def _places(loop: LifeLoop) -> set[Place]:
    """Return where our code waits in all tasks."""
    found = set()
    for task in asyncio.all_tasks(loop):
        inner: Any = task.get_coro()
        lines = []
        while inner is not None:
            frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
            if frame is not None and frame.f_code.co_filename.startswith(_OURS):
                lines.append((frame.f_code.co_filename, frame.f_lineno))
            inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
        found.add(tuple(lines[-4:]))
    return found


class SyncConnection:
    """aiosqlite's connection without its thread: every statement is a step before and a step after.

    The latter only where it matters: `is_watched` tells whether a kill is about to come.
    """

    in_transaction = property(lambda self: self._connection.in_transaction)

    def __init__(self, connection: sqlite3.Connection, is_watched: Callable[[], bool]) -> None:
        self._connection = connection
        self._is_watched = is_watched
        connection.execute("PRAGMA synchronous = OFF")  # a process that is killed loses nothing by it

    async def execute_fetchall(self, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        """Run a statement."""
        await asyncio.sleep(0)
        rows = self._connection.execute(sql, params).fetchall()
        if self._is_watched():
            await asyncio.sleep(0)
        return rows

    async def close(self) -> None:
        """Close."""
        self._connection.close()

    def stop(self) -> None:
        """Close."""
        self._connection.close()

    def die(self) -> None:
        """Close as a kill does: what was not committed never was."""
        self._connection.close()


class PlaceSession:
    """aiohttp's session, whose requests go to a place."""

    closed = False

    def __init__(self, world: World, trace_configs: Sequence[aiohttp.TraceConfig] | None) -> None:
        self._world = world
        self._traces = trace_configs or ()

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def request(self, method: str, url: str, **options: Any) -> PlaceRequest:
        """Return a request, to be made by `async with`."""
        return PlaceRequest(self._world, self._traces, method, url, options)

    async def ws_connect(self, _url: str, **_options: Any) -> PlaceSocket:
        """Connect to the gateway."""
        await asyncio.sleep(self._world.random.uniform(*LATENCY_S))
        if self._world.is_away:
            raise aiohttp.ClientConnectionError("Nobody answers.")
        socket = PlaceSocket(self._world.place)
        self._world.place.connected(socket.push)
        return socket


class PlaceRequest:
    """One request."""

    def __init__(
        self,
        world: World,
        traces: Sequence[aiohttp.TraceConfig],
        method: str,
        url: str,
        options: dict[str, Any],
    ) -> None:
        self._world, self._traces = world, traces
        self._method, self._url, self._options = method, urllib.parse.urlsplit(url), options

    async def __aenter__(self) -> PlaceResponse:
        session, context = cast("aiohttp.ClientSession", self), SimpleNamespace()
        for trace in self._traces:
            for before in trace.on_request_start:
                await before(session, context, cast("Any", SimpleNamespace(url=self._url)))
        try:
            response = await self._ask()
            for trace in self._traces:
                for after in trace.on_request_end:
                    await after(session, context, cast("Any", SimpleNamespace(response=response)))
        except BaseException as error:
            for trace in self._traces:
                for failed in trace.on_request_exception:
                    await failed(session, context, cast("Any", SimpleNamespace(exception=error)))
            raise
        return response

    async def __aexit__(self, *_: object) -> None: ...

    async def _ask(self) -> PlaceResponse:
        world, path = self._world, self._url.path.removeprefix("/api/v10")
        await asyncio.sleep(world.random.uniform(*LATENCY_S))
        is_unlucky = world.random.random() < world.lost_share
        if world.is_away or (is_unlucky and world.random.random() < 0.5):
            raise aiohttp.ClientConnectionError("Nobody answers.")
        query = dict(urllib.parse.parse_qsl(self._url.query)) | {
            key: str(value) for key, value in (self._options.get("params") or {}).items()
        }
        try:
            reply = await world.place.answer(self._method, path, query, _body_of(self._options.get("data")))
        except LostError:
            raise aiohttp.ServerDisconnectedError from None
        await asyncio.sleep(world.random.uniform(*LATENCY_S))
        if is_unlucky or world.is_away:
            raise aiohttp.ServerDisconnectedError
        return PlaceResponse(reply)


def _body_of(data: Any) -> Any:
    if isinstance(data, aiohttp.FormData):
        fields = {options["name"]: value for options, _, value in data._fields}
        return json.loads(fields["payload_json"])
    return json.loads(data) if data else None


class PlaceResponse:
    """What came back."""

    def __init__(self, reply: Reply) -> None:
        self.status, self.reason = reply.status, "As the place says"
        self._text = reply.text if reply.text is not None else json.dumps(reply.content)
        kind = {} if reply.text is not None else {"content-type": "application/json"}
        self.headers = CIMultiDict({**kind, **reply.headers})

    async def text(self, **_: object) -> str:
        """Return the body."""
        return self._text

    def close(self) -> None:
        """Do nothing."""


class PlaceSocket:
    """A connection to the gateway."""

    def __init__(self, place: DiscordPlace) -> None:
        self.close_code: int | None = None
        self.closed = False
        self._place = place
        self._incoming: asyncio.Queue[Payload] = asyncio.Queue()

    def push(self, payload: Payload) -> None:
        """Send something to the bot."""
        self._incoming.put_nowait(payload)

    async def receive(self, timeout: float | None = None) -> aiohttp.WSMessage:  # noqa: ARG002, ASYNC109
        """Wait for what comes; heartbeats are answered, so that it never takes too long."""
        payload = await self._incoming.get()
        if payload["op"] == "close":
            self.close_code, self.closed = payload["d"], True
            return aiohttp.WSMessage(aiohttp.WSMsgType.CLOSED, None, None)
        return aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, json.dumps(payload), None)

    async def send_str(self, data: str) -> None:
        """Take what the bot sends."""
        self._place.take(json.loads(data), self.push)

    async def close(self, *, code: int = 1000) -> None:
        """End the connection."""
        if self.close_code is None:
            self.close_code, self.closed = code, True
            self.push({"op": "close", "d": code})


class in_world:  # noqa: N801 - reads as what it is
    """Within it discord.py reaches nothing but this world, and the ends of killed lives are silent."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> Self:
        gc.collect()
        gc.freeze()  # what is there already need not be looked through after each kill
        self._session, self._hook = aiohttp.ClientSession, sys.unraisablehook
        world = self._world
        aiohttp.ClientSession = lambda **options: PlaceSession(world, options.get("trace_configs"))  # type: ignore[assignment,misc]
        sys.unraisablehook = lambda _: None
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        gc.collect()
        aiohttp.ClientSession, sys.unraisablehook = self._session, self._hook  # type: ignore[misc]
