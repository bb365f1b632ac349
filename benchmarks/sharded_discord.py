"""As much of Discord as the processes of one bot need that share its shards, over real HTTP and WebSockets.

Many servers with a channel each, dealt out by shards. What Discord enforces is enforced: new sessions of one
bucket five seconds apart, so many requests a second for the whole bot, so many writes in a channel. A shard
may have several sessions, and each gets all events, so that two processes on one shard would be seen. Who
begins a session is told nothing of what was said before.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from storage.shards import shard_of
from tests.bot.operations.discord_api import (
    BOT_ID,
    Network,
    Op,
    Payload,
    Reply,
    Send,
    Session,
    application,
    fill,
    gateway_of,
    guild,
    limited,
    member,
    message,
    page,
    ready,
    refused,
    registered,
    snowflake,
    user,
)

IDENTIFY_S = 5.0
PER_SECOND = 50
CHANNEL_WRITES, CHANNEL_S = 5, 5.0
"""Edits, or new messages, in one channel."""
HEARTBEAT_MS = 5000


@dataclass(kw_only=True)
class ShardSession(Session):
    """One session of one shard."""

    shard_id: int

    def dispatch(self, event: str, data: Payload) -> None:
        """Send an event, now or when the connection is resumed."""
        payload = self.record(event, data)
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
        self.sessions: dict[str, ShardSession] = {}
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
        self._network = Network(self)

    # What people do

    def ask(self, server: int, text: str, person_id: int) -> int:
        """Let a person mention the bot in a server's channel; return the message's id."""
        guild_id = self.server_ids[server]
        asked = self._message(user(person_id), f"<@{BOT_ID}> {text}", guild_id + 1)
        asked["mentions"] = [{**user(BOT_ID), "member": member()}]
        self._put(asked, {"member": member()})
        return int(asked["id"])

    def is_attended(self, server: int) -> bool:
        """Tell whether some session gets what is said in a server now."""
        shard_id = shard_of(self.server_ids[server], self.num_shards)
        return any(one.shard_id == shard_id and one.send is not None for one in self.sessions.values())

    def drop(self, *, is_resumable: bool) -> None:
        """End the connections of all sessions, as Discord does now and then."""
        for session in self.sessions.values():
            if session.send is not None:
                session.send(
                    {"op": Op.RECONNECT, "d": None} if is_resumable else {"op": Op.INVALID, "d": False}
                )
        if not is_resumable:
            self.sessions.clear()

    # The API

    async def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Reply:
        """Answer a request."""
        now_s = time.monotonic()
        counts = "/interactions/" not in path and "/webhooks/" not in path
        if counts:
            self.request_times.append(now_s)
            second, num = self._window
            self._window = (int(now_s), num + 1 if second == int(now_s) else 1)
            if self._window[1] > PER_SECOND * self.speed:
                self.num_limited += 1
                return limited(1 - now_s % 1, is_global=True)
        if path == "/gateway/bot":
            limits = {"total": 1000, "remaining": 1000, "reset_after": 0}
            limits["max_concurrency"] = self.max_concurrency
            url = gateway_of(self.url)
            return Reply({"url": url, "shards": self.num_shards, "session_start_limit": limits})
        if path == f"/applications/{BOT_ID}/commands":
            if method == "PUT":
                self.num_registered += 1
                self.commands = registered(body)
            return Reply(self.commands)
        if path == "/users/@me":
            return Reply(user(BOT_ID))
        if path == "/oauth2/applications/@me":
            return Reply(application())
        if (found := re.fullmatch(r"/guilds/\d+/members/(\d+)", path)) is not None:
            return Reply({**member(), "user": user(int(found[1]))})
        if (found := re.fullmatch(r"/channels/(\d+)(?:/(typing|messages)(?:/(\d+))?)?", path)) is None:
            self.unknown.add(f"{method} {path}")
            return refused(404)
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
            return Reply(self._channel(channel_id))
        if what == "typing":
            return Reply(None, 204)
        if method == "GET" and not message_id:
            return Reply([self.messages[one] for one in page(self.by_channel[channel_id], query)])
        if message_id and message_id not in self.messages:
            return refused(404, 10008)
        if method == "GET":
            return Reply(self.messages[message_id])
        if method == "DELETE":
            del self.messages[message_id]
            self.by_channel[channel_id].remove(message_id)
            ids = {"id": str(message_id), "channel_id": str(channel_id), "guild_id": str(channel_id - 1)}
            self._dispatch("MESSAGE_DELETE", channel_id - 1, ids)
            return Reply(None, 204)
        times = self._writes[method, channel_id]
        if len(times) == CHANNEL_WRITES and now_s - times[0] < CHANNEL_S / self.speed:
            self.num_limited_channels += 1
            return limited(CHANNEL_S - (now_s - times[0]) * self.speed)
        times.append(now_s)
        if method == "PATCH":
            fill(self.messages[message_id], body)
            return Reply(self.messages[message_id])
        return Reply(self._create(channel_id, body))

    def _create(self, channel_id: int, body: Payload) -> Payload:
        nonce = str(body.get("nonce", ""))
        if body.get("enforce_nonce") and self._nonces.get(nonce) in self.messages:
            return self.messages[self._nonces[nonce]]
        made = self._message(user(BOT_ID), "", channel_id)
        fill(made, body)
        if nonce:
            made["nonce"] = body["nonce"]
            self._nonces[nonce] = int(made["id"])
        if (reference := body.get("message_reference")) is not None:
            made |= {"type": 19, "message_reference": {**reference, "guild_id": str(channel_id - 1)}}
        self._put(made)
        return made

    def _put(self, made: Payload, more: Payload | None = None) -> None:
        channel_id = int(made["channel_id"])
        self.messages[int(made["id"])] = made
        self.by_channel[channel_id].append(int(made["id"]))
        event = {**made, **(more or {}), "guild_id": str(channel_id - 1)}
        self._dispatch("MESSAGE_CREATE", channel_id - 1, event)

    def _dispatch(self, event: str, guild_id: int, data: Payload) -> None:
        shard_id = shard_of(guild_id, self.num_shards)
        for session in self.sessions.values():
            if session.shard_id == shard_id:
                session.dispatch(event, data)

    def _message(self, author: Payload, content: str, channel_id: int) -> Payload:
        self._newest_id = snowflake(time.time(), self._newest_id)
        return message(self._newest_id, author, content, channel_id)

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

    def connected(self, send: Send) -> None:
        """Greet a connection."""
        send({"op": Op.HELLO, "d": {"heartbeat_interval": HEARTBEAT_MS}})

    def left(self, send: Send) -> None:
        """Learn that a connection has ended."""
        for session in self.sessions.values():
            if session.send is send:
                session.send = None

    def take(self, payload: Payload, send: Send) -> None:
        """Take what a bot sends over the gateway."""
        match payload["op"]:
            case Op.HEARTBEAT:
                send({"op": Op.ACK, "d": None})
            case Op.IDENTIFY:
                self._identify(payload["d"], send)
            case Op.RESUME:
                self._resume(payload["d"], send)

    def _identify(self, data: Payload, send: Send) -> None:
        now_s = time.monotonic()
        shard_id, count = data.get("shard", (0, 1))
        if count != self.num_shards:
            send({"op": "close", "d": 4010})
            return
        begun = self.identified[shard_id % self.max_concurrency]
        if begun and now_s - begun[-1] < IDENTIFY_S / self.speed:
            self.num_early += 1
            send({"op": Op.INVALID, "d": False})
            return
        begun.append(now_s)
        session_id = f"session{sum(map(len, self.identified.values()))}"
        session = self.sessions[session_id] = ShardSession(shard_id=shard_id, send=send)
        ours = [one for one in self.server_ids if shard_of(one, count) == shard_id]
        session.dispatch("READY", ready(session_id, self.url, ours, shard=[shard_id, count]))
        for guild_id in ours:
            session.dispatch(
                "GUILD_CREATE", guild(guild_id, f"Server {guild_id >> 22}", [self._channel(guild_id + 1)])
            )

    def _resume(self, data: Payload, send: Send) -> None:
        session = self.sessions.get(data["session_id"])
        if session is None:
            send({"op": Op.INVALID, "d": False})
            return
        session.resume(send, data["seq"])
        session.dispatch("RESUMED", {})

    # Over the network

    async def up(self) -> None:
        """Serve on a free port."""
        self.url = await self._network.up()

    async def down(self) -> None:
        """Serve no more."""
        await self._network.down()


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
