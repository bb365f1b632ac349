"""What Discord's API and gateway look like, and how a simulated place is served over HTTP and WebSockets.

It holds nothing and decides nothing: that is for the place that is served.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from aiohttp import WSMsgType, web

BOT_ID, PERSON_ID = 123456789012345678, 2
"""The bot, and the person who owns it and all servers."""
ALL_PERMISSIONS = 2**52 - 1
EPOCH_MS = 1420070400000
WHEN = "2026-01-01T00:00:00+00:00"

Payload = dict[str, Any]
Send = Callable[[Payload], None]
"""Sends to one connection of the gateway. The operation "close" ends it."""


class Op(IntEnum):
    """What a payload of the gateway is for."""

    DISPATCH = 0
    HEARTBEAT = 1
    IDENTIFY = 2
    RESUME = 6
    RECONNECT = 7
    INVALID = 9
    HELLO = 10
    ACK = 11


class LostError(Exception):
    """The connection ends without an answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request is answered with; `text` is what is not JSON."""

    content: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None


def refused(status: int, code: int = 0, message: str = "refused") -> Reply:
    """Return how Discord refuses."""
    return Reply({"code": code, "message": message}, status)


def limited(retry_after_s: float, *, is_global: bool = False) -> Reply:
    """Return how Discord says that there are too many requests."""
    body = {"message": "You are being rate limited.", "retry_after": retry_after_s, "global": is_global}
    scope = {"X-RateLimit-Global": "true"} if is_global else {}
    return Reply(body, 429, {"Via": "1.1 google", "Retry-After": str(retry_after_s), **scope})


@dataclass
class Session:
    """What the gateway remembers of a bot: its newest events, so that a resumed connection misses none."""

    events: deque[Payload] = field(default_factory=lambda: deque(maxlen=1000))
    num_events: int = 0
    send: Send | None = None
    """To the connection, None while there is none."""

    def record(self, event: str, data: Payload) -> Payload:
        """Count an event, remember it as it is now, and return what is sent."""
        self.num_events += 1
        copied = json.loads(json.dumps(data))
        payload = {"op": Op.DISPATCH, "s": self.num_events, "t": event, "d": copied}
        self.events.append(payload)
        return payload

    def resume(self, send: Send, after: int | None) -> None:
        """Go on over a new connection with all that came after the event of this number."""
        self.send = send
        for payload in [one for one in self.events if one["s"] > (after or 0)]:
            send(payload)


def snowflake(now_s: float, newest: int) -> int:
    """Return the id of what is made now, in seconds since 1970, after the `newest`."""
    return max(int(now_s * 1000 - EPOCH_MS) << 22, newest + 1)


def page(ids: Sequence[int], query: Mapping[str, str]) -> list[int]:
    """Return a page of a channel's messages, given in order; the newest first, as Discord does."""
    after, before = int(query.get("after", 0)), int(query.get("before", 2**63))
    limit = int(query.get("limit", 50))
    found = [one for one in ids if after < one < before]
    return (found[:limit] if "after" in query else found[-limit:])[::-1]


def registered(commands: Iterable[Payload]) -> list[Payload]:
    """Return commands as Discord gives them back."""
    given = {"description": "", "application_id": str(BOT_ID), "version": "1"}
    return [{**given, **one, "id": str(number)} for number, one in enumerate(commands, 1)]


def user(user_id: int) -> Payload:
    """Return the bot, or a person."""
    is_bot = user_id == BOT_ID
    name = "Llamacord" if is_bot else "Anna" if user_id == PERSON_ID else f"Person{user_id}"
    return {"id": str(user_id), "username": name, "discriminator": "0", "avatar": None, "bot": is_bot}


def member() -> Payload:
    """Return a member, without the user."""
    return {"roles": [], "joined_at": WHEN, "deaf": False, "mute": False, "flags": 0}


def application() -> Payload:
    """Return the bot's application."""
    texts = {"name": "Llamacord", "description": "", "icon": None, "verify_key": ""}
    switches = {"bot_public": True, "bot_require_code_grant": False, "flags": 0}
    return {"id": str(BOT_ID), "owner": user(PERSON_ID), **texts, **switches}


def message(message_id: int, author: Payload, content: str, channel_id: int) -> Payload:
    """Return a message with nothing but a text."""
    ids = {"id": str(message_id), "channel_id": str(channel_id)}
    nothing: Payload = {
        key: [] for key in ("mentions", "mention_roles", "attachments", "embeds", "components")
    }
    flags = {"tts": False, "mention_everyone": False, "pinned": False, "type": 0}
    times = {"timestamp": WHEN, "edited_timestamp": None}
    return {**ids, "author": author, "content": content, **nothing, **flags, **times}


def fill(message: Payload, body: Payload) -> None:
    """Give a message what a request says, as far as it says something."""
    if "content" in body:
        message["content"] = (body["content"] or "").strip()
    for key in ("embeds", "components"):
        if key in body:
            message[key] = body[key] or []


def is_ours(message: Payload) -> bool:
    """Tell whether a message is the bot's."""
    return bool(message["author"]["id"] == str(BOT_ID))


def ready(session_id: str, url: str, guild_ids: Sequence[int], **more: Any) -> Payload:
    """Return what a session begins with; `url` is that of the API."""
    return {
        "v": 10,
        "user": user(BOT_ID),
        "guilds": [{"id": str(one), "unavailable": True} for one in guild_ids],
        "session_id": session_id,
        "resume_gateway_url": gateway_of(url),
        "application": {"id": str(BOT_ID), "flags": 0},
        **more,
    }


def gateway_of(url: str) -> str:
    """Return where the gateway of an API is."""
    return url.replace("http", "ws", 1) + "/gateway"


def guild(guild_id: int, name: str, channels: list[Payload]) -> Payload:
    """Return a server in which the bot may do anything but administer."""
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
        "name": name,
        "owner_id": str(PERSON_ID),
        "member_count": 2,
        "preferred_locale": "en-US",
        "roles": [everyone],
        "channels": channels,
        "members": [{**member(), "user": user(BOT_ID)}],
        **lists,
        **levels,
    }


class Place(Protocol):
    """What can be served."""

    async def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Reply:
        """Answer a request. Raises `LostError` where there is to be no answer."""
        ...

    def connected(self, send: Send) -> None:
        """Greet a connection of the gateway."""
        ...

    def take(self, payload: Payload, send: Send) -> None:
        """Take what the bot sends over the gateway."""
        ...

    def left(self, send: Send) -> None:
        """Learn that a connection has ended."""
        ...


class Network:
    """Serves a place on a port of this machine; down and up again, it has the same one."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._gateways: set[asyncio.Transport] = set()

    async def up(self) -> str:
        """Serve; return the address of the API."""
        application = web.Application()
        application.add_routes(
            [web.get("/gateway", self._run_gateway), web.route("*", "/{path:.*}", self._serve)]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{self._port}"

    async def down(self) -> None:
        """Be away: every connection ends, and none is taken."""
        for transport in list(self._gateways):
            transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = None
        if request.content_type == "application/json":
            body = await request.json()
        elif request.content_type == "multipart/form-data":
            body = json.loads(str((await request.post())["payload_json"]))
        try:
            reply = await self._place.answer(request.method, request.path, dict(request.query), body)
        except LostError:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if reply.text is not None:
            return web.Response(body=reply.text.encode(), status=reply.status, headers=reply.headers)
        if reply.status == 204:
            return web.Response(status=204)
        # With the header that discord.py compares with, letter by letter.
        headers = {"Content-Type": "application/json", **reply.headers}
        return web.Response(body=json.dumps(reply.content).encode(), status=reply.status, headers=headers)

    async def _run_gateway(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        assert request.transport is not None
        self._gateways.add(request.transport)
        outgoing: asyncio.Queue[Payload] = asyncio.Queue()
        sending = asyncio.create_task(_send_all(socket, outgoing))
        send = outgoing.put_nowait
        self._place.connected(send)
        try:
            async for frame in socket:
                if frame.type is WSMsgType.TEXT:
                    self._place.take(frame.json(), send)
        finally:
            sending.cancel()
            self._gateways.discard(request.transport)
            self._place.left(send)
        return socket


async def _send_all(socket: web.WebSocketResponse, outgoing: asyncio.Queue[Payload]) -> None:
    with suppress(ConnectionError):
        while True:
            payload = await outgoing.get()
            if payload["op"] == "close":
                await socket.close(code=payload["d"])
            else:
                await socket.send_json(payload)
