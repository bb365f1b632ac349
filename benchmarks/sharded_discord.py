"""As much of Discord as the processes of one bot need that share its shards, over real HTTP and WebSockets.

Many servers with a channel each, dealt out by shards. What Discord enforces is enforced: new sessions of one
bucket five seconds apart, so many requests a second for the whole bot, so many writes in a channel. A shard
may have several sessions, and each gets all events, so that two processes on one shard would be seen. Who
begins a session is told nothing of what was said before.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from storage.shards import shard_of

BOT_ID = 123456789012345678
EPOCH_MS = 1420070400000
IDENTIFY_S = 5.0
PER_SECOND = 50
CHANNEL_WRITES, CHANNEL_S = 5, 5.0
"""Edits, or new messages, in one channel."""
HEARTBEAT_MS = 5000
ALL_PERMISSIONS = 2**52 - 1
MAX_EVENTS = 1000
"""That a session can be told again."""
_WHEN = "2026-01-01T00:00:00+00:00"
_DISPATCH, _HEARTBEAT, _IDENTIFY, _RESUME, _RECONNECT, _INVALID, _HELLO, _ACK = 0, 1, 2, 6, 7, 9, 10, 11

Payload = dict[str, Any]
Reply = tuple[Any, int, Mapping[str, str]]
"""What is answered, status, and headers."""


@dataclass
class Session:
    """One session of one shard. send: to its connection, None while there is none."""

    shard_id: int
    send: Callable[[Payload], None] | None
    begun_at_s: float
    num_events: int = 0
    events: deque[Payload] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    lost_at_s: float | None = None

    def dispatch(self, event: str, data: Payload) -> None:
        """Send an event, now or when the connection is resumed."""
        self.num_events += 1
        payload = {"op": _DISPATCH, "s": self.num_events, "t": event, "d": data}
        self.events.append(payload)
        if self.send is not None:
            self.send(payload)


class ShardedDiscord:
    """The place. Servers are numbered from 0; their channels have an id that is one higher."""

    def __init__(
        self, num_servers: int, num_shards: int, *, max_concurrency: int = 1, speed: float = 1.0
    ) -> None:
        self.speed = speed
        self.num_shards = num_shards
        self.max_concurrency = max_concurrency
        self.server_ids = [(1000 + number) << 22 for number in range(num_servers)]
        self.url = ""
        self.messages: dict[int, Payload] = {}
        self.by_channel: dict[int, list[int]] = defaultdict(list)
        self.commands: list[Payload] = []
        self.num_registered = 0
        self.sessions: dict[str, Session] = {}
        self.identified: dict[int, list[float]] = defaultdict(list)
        """When sessions were begun, by bucket."""
        self.num_early = 0
        """Sessions that were begun too soon after another one, and refused."""
        self.request_times: deque[float] = deque(maxlen=100_000)
        self.num_limited = 0
        """Requests that were too many for the whole bot, and refused."""
        self.num_limited_channels = 0
        self.unknown: set[str] = set()
        self._window: tuple[int, int] = (0, 0)
        self._writes: dict[tuple[str, int], deque[float]] = defaultdict(lambda: deque(maxlen=CHANNEL_WRITES))
        self._nonces: dict[str, int] = {}
        self._newest_id = 0
        self._sockets: set[web.WebSocketResponse] = set()
        self._runner: web.AppRunner | None = None

    # What people do

    def ask(self, server: int, text: str, person_id: int) -> int:
        """Let a person mention the bot in a server's channel; return the message's id."""
        guild_id = self.server_ids[server]
        message = self._message(_user(person_id), f"<@{BOT_ID}> {text}", guild_id + 1)
        message["mentions"] = [{**_user(BOT_ID), "member": _member()}]
        self._put(message, {"member": _member()})
        return int(message["id"])

    def is_attended(self, server: int) -> bool:
        """Tell whether some session gets what is said in a server now."""
        shard_id = shard_of(self.server_ids[server], self.num_shards)
        return any(one.shard_id == shard_id and one.send is not None for one in self.sessions.values())

    def drop(self, *, is_resumable: bool) -> None:
        """End the connections of all sessions, as Discord does now and then."""
        for session in self.sessions.values():
            if session.send is not None:
                session.send({"op": _RECONNECT, "d": None} if is_resumable else {"op": _INVALID, "d": False})
        if not is_resumable:
            self.sessions.clear()

    # The API

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Reply:
        """Answer a request."""
        now_s = time.monotonic()
        counts = "/interactions/" not in path and "/webhooks/" not in path
        if counts:
            self.request_times.append(now_s)
            second, num = self._window
            self._window = (int(now_s), num + 1 if second == int(now_s) else 1)
            if self._window[1] > PER_SECOND * self.speed:
                self.num_limited += 1
                return _limited(1 - now_s % 1, is_global=True)
        application = f"/applications/{BOT_ID}"
        if path == "/gateway/bot":
            limits = {"total": 1000, "remaining": 1000, "reset_after": 0}
            limits["max_concurrency"] = self.max_concurrency
            url = self.url.replace("http", "ws", 1) + "/gateway"
            return {"url": url, "shards": self.num_shards, "session_start_limit": limits}, 200, {}
        if path == f"{application}/commands":
            if method == "PUT":
                self.num_registered += 1
                given = {"description": "", "application_id": str(BOT_ID), "version": "1"}
                self.commands = [{**given, **one, "id": str(n)} for n, one in enumerate(body, 1)]
            return self.commands, 200, {}
        if path == "/users/@me":
            return _user(BOT_ID), 200, {}
        if path == "/oauth2/applications/@me":
            texts = {"name": "Llamacord", "description": "", "icon": None, "verify_key": ""}
            switches = {"bot_public": True, "bot_require_code_grant": False, "flags": 0}
            return {"id": str(BOT_ID), "owner": _user(2), **texts, **switches}, 200, {}
        if (found := re.fullmatch(r"/guilds/\d+/members/(\d+)", path)) is not None:
            return {**_member(), "user": _user(int(found[1]))}, 200, {}
        if (found := re.fullmatch(r"/channels/(\d+)(?:/(typing|messages)(?:/(\d+))?)?", path)) is None:
            self.unknown.add(f"{method} {path}")
            return _refused(404, 0)
        return self._in_channel(method, int(found[1]), found[2], int(found[3] or 0), query, body, now_s)

    def _in_channel(
        self,
        method: str,
        channel_id: int,
        what: str | None,
        message_id: int,
        query: Mapping[str, str],
        body: Any,
        now_s: float,
    ) -> Reply:
        if what is None:
            return self._channel(channel_id), 200, {}
        if what == "typing":
            return None, 204, {}
        if method == "GET" and not message_id:
            return self._page(channel_id, query), 200, {}
        if message_id and message_id not in self.messages:
            return _refused(404, 10008)
        if method == "GET":
            return self.messages[message_id], 200, {}
        if method == "DELETE":
            message = self.messages.pop(message_id)
            self.by_channel[channel_id].remove(message_id)
            ids = {"id": message["id"], "channel_id": str(channel_id), "guild_id": str(channel_id - 1)}
            self._dispatch("MESSAGE_DELETE", channel_id - 1, ids)
            return None, 204, {}
        times = self._writes[method, channel_id]
        if len(times) == CHANNEL_WRITES and now_s - times[0] < CHANNEL_S / self.speed:
            self.num_limited_channels += 1
            return _limited(CHANNEL_S - (now_s - times[0]) * self.speed)
        times.append(now_s)
        if method == "PATCH":
            message = self.messages[message_id]
            _fill(message, body)
            return message, 200, {}
        return self._create(channel_id, body), 200, {}

    def _create(self, channel_id: int, body: Payload) -> Payload:
        nonce = str(body.get("nonce", ""))
        if body.get("enforce_nonce") and self._nonces.get(nonce) in self.messages:
            return self.messages[self._nonces[nonce]]
        message = self._message(_user(BOT_ID), "", channel_id)
        _fill(message, body)
        if nonce:
            message["nonce"] = body["nonce"]
            self._nonces[nonce] = int(message["id"])
        if (reference := body.get("message_reference")) is not None:
            message |= {
                "type": 19,
                "message_reference": {**reference, "guild_id": str(channel_id - 1)},
            }
        self._put(message)
        return message

    def _page(self, channel_id: int, query: Mapping[str, str]) -> list[Payload]:
        """Return a page of a channel's messages, the newest first, as Discord does."""
        after, limit = int(query.get("after", 0)), int(query.get("limit", 50))
        before = int(query.get("before", 2**63))
        found = [self.messages[one] for one in self.by_channel[channel_id] if after < one < before]
        page = found[:limit] if "after" in query else found[-limit:]
        return page[::-1]

    def _put(self, message: Payload, more: Payload | None = None) -> None:
        channel_id = int(message["channel_id"])
        self.messages[int(message["id"])] = message
        self.by_channel[channel_id].append(int(message["id"]))
        event = {**json.loads(json.dumps(message)), **(more or {}), "guild_id": str(channel_id - 1)}
        self._dispatch("MESSAGE_CREATE", channel_id - 1, event)

    def _dispatch(self, event: str, guild_id: int, data: Payload) -> None:
        shard_id = shard_of(guild_id, self.num_shards)
        for session in self.sessions.values():
            if session.shard_id == shard_id:
                session.dispatch(event, data)

    def _message(self, author: Payload, content: str, channel_id: int) -> Payload:
        self._newest_id = max(int(time.time() * 1000 - EPOCH_MS) << 22, self._newest_id + 1)
        nothing: Payload = {
            key: [] for key in ("mentions", "mention_roles", "attachments", "embeds", "components")
        }
        flags = {"tts": False, "mention_everyone": False, "pinned": False, "type": 0}
        times = {"timestamp": _WHEN, "edited_timestamp": None}
        ids = {"id": str(self._newest_id), "channel_id": str(channel_id)}
        return {**ids, "author": author, "content": content, **nothing, **flags, **times}

    def _channel(self, channel_id: int) -> Payload:
        said = self.by_channel.get(channel_id)
        return {
            "id": str(channel_id),
            "guild_id": str(channel_id - 1),
            "type": 0,
            "name": "general",
            "position": 0,
            "permission_overwrites": [],
            "last_message_id": str(said[-1]) if said else None,
        }

    # The gateway

    def _take(self, payload: Payload, send: Callable[[Payload], None]) -> None:
        match payload["op"]:
            case 1:
                send({"op": _ACK, "d": None})
            case 2:
                self._identify(payload["d"], send)
            case 6:
                self._resume(payload["d"], send)

    def _identify(self, data: Payload, send: Callable[[Payload], None]) -> None:
        now_s = time.monotonic()
        shard_id, count = data.get("shard", (0, 1))
        if count != self.num_shards:
            send({"op": "close", "d": 4010})
            return
        begun = self.identified[shard_id % self.max_concurrency]
        if begun and now_s - begun[-1] < IDENTIFY_S / self.speed:
            self.num_early += 1
            send({"op": _INVALID, "d": False})
            return
        begun.append(now_s)
        session_id = f"session{sum(map(len, self.identified.values()))}"
        session = self.sessions[session_id] = Session(shard_id, send, now_s)
        ours = [one for one in self.server_ids if shard_of(one, count) == shard_id]
        ready = {
            "v": 10,
            "user": _user(BOT_ID),
            "shard": [shard_id, count],
            "guilds": [{"id": str(one), "unavailable": True} for one in ours],
            "session_id": session_id,
            "resume_gateway_url": self.url.replace("http", "ws", 1) + "/gateway",
            "application": {"id": str(BOT_ID), "flags": 0},
        }
        session.dispatch("READY", ready)
        for guild_id in ours:
            session.dispatch("GUILD_CREATE", _guild(guild_id, [self._channel(guild_id + 1)]))

    def _resume(self, data: Payload, send: Callable[[Payload], None]) -> None:
        session = self.sessions.get(data["session_id"])
        if session is None:
            send({"op": _INVALID, "d": False})
            return
        session.send = send
        for payload in [one for one in session.events if one["s"] > (data["seq"] or 0)]:
            send(payload)
        session.dispatch("RESUMED", {})

    # Over the network

    async def up(self) -> None:
        """Serve on a free port."""
        application = web.Application()
        application.add_routes(
            [web.get("/gateway", self._run_gateway), web.route("*", "/{path:.*}", self._serve)]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def down(self) -> None:
        """Serve no more."""
        for socket in list(self._sockets):
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        body = None
        if request.content_type == "application/json":
            body = await request.json()
        elif request.content_type == "multipart/form-data":
            body = json.loads(str((await request.post())["payload_json"]))
        content, status, headers = self.answer(request.method, request.path, dict(request.query), body)
        if status == 204:
            return web.Response(status=204)
        # With the header that discord.py compares with, letter by letter.
        given = {"Content-Type": "application/json", **headers}
        return web.Response(body=json.dumps(content).encode(), status=status, headers=given)

    async def _run_gateway(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        self._sockets.add(socket)
        outgoing: asyncio.Queue[Payload] = asyncio.Queue()
        sending = asyncio.create_task(_send_all(socket, outgoing))
        outgoing.put_nowait({"op": _HELLO, "d": {"heartbeat_interval": HEARTBEAT_MS}})
        send = outgoing.put_nowait
        try:
            async for frame in socket:
                if frame.type is WSMsgType.TEXT:
                    self._take(frame.json(), send)
        finally:
            sending.cancel()
            self._sockets.discard(socket)
            for session in self.sessions.values():
                if session.send is send:
                    session.send = None
        return socket


async def _send_all(socket: web.WebSocketResponse, outgoing: asyncio.Queue[Payload]) -> None:
    try:
        while True:
            payload = await outgoing.get()
            if payload["op"] == "close":
                await socket.close(code=payload["d"])
            else:
                await socket.send_json(payload)
    except ConnectionError:
        return


@asynccontextmanager
async def sharded_discord(
    num_servers: int, num_shards: int, *, max_concurrency: int = 1, speed: float = 1.0
) -> AsyncIterator[ShardedDiscord]:
    """Serve on a free port until the end of the `async with`. speed: how fast the bots' time passes."""
    place = ShardedDiscord(num_servers, num_shards, max_concurrency=max_concurrency, speed=speed)
    await place.up()
    try:
        yield place
    finally:
        await place.down()


def is_ours(message: Payload) -> bool:
    """Tell whether a message is the bot's."""
    return bool(message["author"]["id"] == str(BOT_ID))


def _refused(status: int, code: int) -> Reply:
    return {"code": code, "message": "refused"}, status, {}


def _limited(retry_after_s: float, *, is_global: bool = False) -> Reply:
    body = {"message": "You are being rate limited.", "retry_after": retry_after_s, "global": is_global}
    scope = {"X-RateLimit-Global": "true"} if is_global else {}
    return body, 429, {"Via": "1.1 google", "Retry-After": str(retry_after_s), **scope}


def _fill(message: Payload, body: Payload) -> None:
    if "content" in body:
        message["content"] = (body["content"] or "").strip()
    for key in ("embeds", "components"):
        if key in body:
            message[key] = body[key] or []


def _user(user_id: int) -> Payload:
    name = "Llamacord" if user_id == BOT_ID else f"Person{user_id}"
    is_bot = user_id == BOT_ID
    return {"id": str(user_id), "username": name, "discriminator": "0", "avatar": None, "bot": is_bot}


def _member() -> Payload:
    return {"roles": [], "joined_at": _WHEN, "deaf": False, "mute": False, "flags": 0}


def _guild(guild_id: int, channels: list[Payload]) -> Payload:
    everyone = {
        "id": str(guild_id),
        "name": "@everyone",
        "permissions": str(ALL_PERMISSIONS & ~8),
        "position": 0,
        **dict.fromkeys(("color", "flags"), 0),
        **dict.fromkeys(("hoist", "managed", "mentionable"), False),
    }
    lists: Payload = {key: [] for key in ("emojis", "stickers", "features", "threads", "presences")}
    levels = dict.fromkeys(
        (
            *("verification_level", "default_message_notifications", "explicit_content_filter"),
            *("mfa_level", "nsfw_level", "premium_tier", "system_channel_flags"),
        ),
        0,
    )
    return {
        "id": str(guild_id),
        "name": f"Server {guild_id >> 22}",
        "owner_id": "2",
        "member_count": 2,
        "preferred_locale": "en-US",
        "roles": [everyone],
        "channels": channels,
        "members": [{**_member(), "user": _user(BOT_ID)}],
        **lists,
        **levels,
    }
