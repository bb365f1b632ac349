"""As much of Discord as one bot needs to run for a while, over real HTTP and a real WebSocket.

One server with one channel and one person. Keeps what the bot wrote; knows no rights and no limits of rates.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

BOT_ID, PERSON_ID, GUILD_ID, CHANNEL_ID = 123456789012345678, 2, 3, 4
HEARTBEAT_MS = 200
ALL_PERMISSIONS = str(2**52 - 1)
_WHEN = "2026-01-01T00:00:00+00:00"
_DISPATCH, _HEARTBEAT, _IDENTIFY, _HELLO, _HEARTBEAT_ACK = 0, 1, 2, 10, 11


@dataclass
class LocalDiscord:
    """`messages` are those of the bot, by id, as they stand now; `num_edits` says how often each changed."""

    url: str = ""
    messages: dict[int, dict[str, Any]] = field(default_factory=dict)
    num_edits: dict[int, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    """Requests that there is no answer to here."""
    _socket: web.WebSocketResponse | None = None
    _num_events: int = 0
    _num_heartbeats: int = 0
    _newest_id: int = 1000
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def ask(self, text: str) -> int:
        """Let the person mention the bot; return the message's id."""
        message = self._message(_user(PERSON_ID, "Anna"), f"<@{BOT_ID}> {text}")
        message["mentions"] = [{**_user(BOT_ID, "Llamacord"), "member": _member()}]
        message["member"] = _member()
        await self._dispatch("MESSAGE_CREATE", message)
        return int(message["id"])

    async def until(self, is_so: Callable[[list[str]], bool], timeout_s: float = 30) -> None:
        """Wait for something to be true of what the bot's messages say, in order. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: is_so(self.texts))

    async def until_heartbeat(self, number: int, timeout_s: float = 30) -> None:
        """Wait until the bot has sent so many heartbeats. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: self._num_heartbeats >= number)

    @property
    def texts(self) -> list[str]:
        """What the bot's messages say, in order."""
        return [message["content"] for _, message in sorted(self.messages.items())]

    def routes(self) -> list[web.RouteDef]:
        """Return what is served."""
        application = f"/applications/{BOT_ID}"
        channel = f"/channels/{CHANNEL_ID}"
        return [
            web.get("/users/@me", _show(_user(BOT_ID, "Llamacord"))),
            web.get("/oauth2/applications/@me", _show(_application())),
            web.get(f"{application}/commands", _show([])),
            web.put(f"{application}/commands", _show([])),
            web.post(f"{channel}/typing", _show({})),
            web.post(f"{channel}/messages", self._create),
            web.patch(channel + "/messages/{id}", self._edit),
            web.get("/gateway", self._run_gateway),
            web.route("*", "/{path:.*}", self._refuse),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        message = self._message(_user(BOT_ID, "Llamacord"), (await request.json()).get("content") or "")
        async with self._changed:
            self.messages[int(message["id"])] = message
            self._changed.notify_all()
        return _json(message)

    async def _edit(self, request: web.Request) -> web.Response:
        message_id = int(request.match_info["id"])
        async with self._changed:
            self.messages[message_id] |= await request.json()
            self.num_edits[message_id] = self.num_edits.get(message_id, 0) + 1
            self._changed.notify_all()
        return _json(self.messages[message_id])

    async def _refuse(self, request: web.Request) -> web.Response:
        self.unknown.append(f"{request.method} {request.path}")
        return _json({"code": 0, "message": "404: Not Found"}, status=404)

    async def _run_gateway(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._socket = socket
        await socket.send_json({"op": _HELLO, "d": {"heartbeat_interval": HEARTBEAT_MS}})
        async for frame in socket:
            if frame.type is WSMsgType.TEXT:
                await self._take(socket, frame.json())
        return socket

    async def _take(self, socket: web.WebSocketResponse, payload: dict[str, Any]) -> None:
        if payload["op"] == _HEARTBEAT:
            await socket.send_json({"op": _HEARTBEAT_ACK, "d": None})
            async with self._changed:
                self._num_heartbeats += 1
                self._changed.notify_all()
        elif payload["op"] == _IDENTIFY:
            ready = {
                "v": 10,
                "user": _user(BOT_ID, "Llamacord"),
                "guilds": [{"id": str(GUILD_ID), "unavailable": True}],
                "session_id": "session",
                "resume_gateway_url": self.url,
                "application": {"id": str(BOT_ID), "flags": 0},
            }
            await self._dispatch("READY", ready)
            await self._dispatch("GUILD_CREATE", _guild())

    async def _dispatch(self, event: str, data: dict[str, Any]) -> None:
        if self._socket is None:
            raise RuntimeError("The bot is not connected.")
        self._num_events += 1
        await self._socket.send_json({"op": _DISPATCH, "s": self._num_events, "t": event, "d": data})

    def _message(self, author: dict[str, Any], content: str) -> dict[str, Any]:
        self._newest_id += 1
        ids = {"id": str(self._newest_id), "channel_id": str(CHANNEL_ID), "guild_id": str(GUILD_ID)}
        nothing: dict[str, Any] = {
            key: [] for key in ("mentions", "mention_roles", "attachments", "embeds", "components")
        }
        flags = {"tts": False, "mention_everyone": False, "pinned": False, "type": 0}
        times = {"timestamp": _WHEN, "edited_timestamp": None}
        return {**ids, "author": author, "content": content, **nothing, **flags, **times}


@asynccontextmanager
async def local_discord() -> AsyncIterator[LocalDiscord]:
    """Serve on a free port until the end of the `async with`."""
    place = LocalDiscord()
    application = web.Application()
    application.add_routes(place.routes())
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        place.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield place
    finally:
        await runner.cleanup()


def _json(content: Any, status: int = 200) -> web.Response:
    """Return a response with the header that discord.py compares with, letter by letter."""
    body = json.dumps(content).encode()
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json"})


def _show(content: Any) -> Callable[[web.Request], Any]:
    async def show(_request: web.Request) -> web.Response:
        return _json(content)

    return show


def _user(user_id: int, name: str) -> dict[str, Any]:
    is_bot = user_id == BOT_ID
    return {"id": str(user_id), "username": name, "discriminator": "0", "avatar": None, "bot": is_bot}


def _member() -> dict[str, Any]:
    return {"roles": [], "joined_at": _WHEN, "deaf": False, "mute": False, "flags": 0}


def _application() -> dict[str, Any]:
    texts = {"name": "Llamacord", "description": "", "icon": None, "verify_key": ""}
    switches = {"bot_public": True, "bot_require_code_grant": False, "flags": 0}
    return {"id": str(BOT_ID), "owner": _user(PERSON_ID, "Anna"), **texts, **switches}


def _guild() -> dict[str, Any]:
    everyone = {
        "id": str(GUILD_ID),
        "name": "@everyone",
        "permissions": ALL_PERMISSIONS,
        "position": 0,
        **dict.fromkeys(("color", "flags"), 0),
        **dict.fromkeys(("hoist", "managed", "mentionable"), False),
    }
    channel = {
        "id": str(CHANNEL_ID),
        "type": 0,
        "name": "general",
        "position": 0,
        "permission_overwrites": [],
    }
    lists: dict[str, Any] = {key: [] for key in ("emojis", "stickers", "features", "threads", "presences")}
    levels = dict.fromkeys(
        (
            *("verification_level", "default_message_notifications", "explicit_content_filter"),
            *("mfa_level", "nsfw_level", "premium_tier", "system_channel_flags"),
        ),
        0,
    )
    return {
        "id": str(GUILD_ID),
        "name": "Server",
        "owner_id": str(PERSON_ID),
        "member_count": 2,
        "preferred_locale": "en-US",
        "roles": [everyone],
        "channels": [channel],
        "members": [{**_member(), "user": _user(BOT_ID, "Llamacord")}],
        **lists,
        **levels,
    }
