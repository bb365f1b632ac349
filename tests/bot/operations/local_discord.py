"""As much of Discord as a bot needs to run for a while, with what Discord documents of faults.

Nonces, statuses, rate limits, a gateway that resumes, drops and freezes, requests that are carried out while
their answer is lost. `DiscordPlace` holds and decides; `local_discord` serves one over real HTTP and real
WebSockets. One server with channels and people.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.bot.operations.discord_api import (
    ALL_PERMISSIONS,
    BOT_ID,
    PERSON_ID,
    WHEN,
    LostError,
    Network,
    Op,
    Payload,
    Reply,
    Send,
    Session,
    application,
    fill,
    guild,
    is_ours,
    member,
    message,
    page,
    ready,
    refused,
    registered,
    snowflake,
    user,
)

GUILD_ID, CHANNEL_ID = 3, 4
VIEW_CHANNEL, SEND_MESSAGES, READ_HISTORY = 1 << 10, 1 << 11 | 1 << 38, 1 << 16
NONCE_LIFE_S, MAX_NONCES = 300.0, 1000
MAX_LENGTH, MAX_NONCE_LENGTH = 2000, 25
FIRST_ANSWER_S, TOKEN_LIFE_S = 3.0, 900.0
"""Within which an interaction is answered at first, and at all."""


@dataclass
class Fault:
    """What happens to requests that match, and say `text`, `times` times, None for ever.

    `reply` is given in the place of an answer. Without one the request is carried out, and with `is_lost`
    nobody learns of it; `on_carried_out` is called before. `delay_s` passes before all.
    """

    method: str
    path: str = ""
    times: int | None = 1
    reply: Reply | None = None
    is_lost: bool = False
    delay_s: float = 0.0
    on_carried_out: Callable[[], object] | None = None
    text: str = ""

    def takes(self, method: str, path: str, body: Any) -> bool:
        """Tell whether a request meets this fault, and count it."""
        if self.times == 0 or self.method != method or re.search(self.path, path) is None:
            return False
        if self.text and self.text not in (body or {}).get("content", ""):
            return False
        self.times = None if self.times is None else self.times - 1
        return True


def banned(retry_after_s: float) -> Reply:
    """Return how Cloudflare, in front of Discord, says that this address is banned for a while."""
    return Reply(None, 429, {"Retry-After": str(retry_after_s)}, text="error code: 1015")


@dataclass
class Acted:
    """Somebody used a command or a button, and was told this."""

    at_s: float
    is_acknowledged: bool = False
    told: list[str] = field(default_factory=list)


@dataclass
class DiscordPlace:
    """`messages` are all that stand, by id, as the API gives them. `now`: seconds since 1970."""

    url: str = ""
    now: Callable[[], float] = time.time
    heartbeat_ms: float = 200.0
    channel_ids: tuple[int, ...] = (CHANNEL_ID,)
    messages: dict[int, Payload] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    num_requests: int = 0
    commands: list[Payload] = field(default_factory=list)
    interactions: dict[str, Acted] = field(default_factory=dict)
    """By their tokens."""
    unknown: list[str] = field(default_factory=list)
    """Requests that there is no answer to here."""
    identified_at: list[float] = field(default_factory=list)
    connected_at: list[float] = field(default_factory=list)
    resumed_at: list[float] = field(default_factory=list)
    frozen: list[Callable[[], None]] | None = None
    """What the gateway does once it does something again; None while it does."""
    denied: dict[int, int] = field(default_factory=dict)
    """Permissions that the bot lacks, by channel."""
    archived: set[int] = field(default_factory=set)
    nonces: dict[str, tuple[int, float]] = field(default_factory=dict)
    session_id: str = ""
    sessions: dict[str, Session] = field(default_factory=dict)
    num_heartbeats: int = 0
    on_change: Callable[[], None] = lambda: None
    _newest_id: int = 0

    # What people and the world do

    def ask(self, text: str, channel_id: int = CHANNEL_ID, person_id: int = PERSON_ID) -> int:
        """Let a person mention the bot; return the message's id."""
        message = self._message(user(person_id), f"<@{BOT_ID}> {text}", channel_id)
        message["mentions"] = [{**user(BOT_ID), "member": member()}]
        message["member"] = member()
        self.messages[int(message["id"])] = message
        self.dispatch("MESSAGE_CREATE", message)
        return int(message["id"])

    def press(self, message_id: int, custom_id: str, person_id: int = PERSON_ID) -> str:
        """Let a person press a button; return the token with which that is answered."""
        message = self.messages[message_id]
        data = {"custom_id": custom_id, "component_type": 2}
        return self._interact(3, int(message["channel_id"]), person_id, {"data": data, "message": message})

    def command(self, name: str, channel_id: int = CHANNEL_ID, person_id: int = PERSON_ID) -> str:
        """Let a person use a command; return the token with which that is answered."""
        found = next((one for one in self.commands if one["name"] == name), None)
        assert found is not None, f"/{name} is not registered"
        data = {"id": found["id"], "name": name, "type": 1, "options": []}
        return self._interact(2, channel_id, person_id, {"data": data})

    def _interact(self, kind: int, channel_id: int, person_id: int, more: Payload) -> str:
        self._newest_id = self._new_id()
        token = f"token{self._newest_id}"
        self.interactions[token] = Acted(self.now())
        interaction = {
            "id": str(self._newest_id),
            "application_id": str(BOT_ID),
            "type": kind,
            "token": token,
            "version": 1,
            "guild_id": str(GUILD_ID),
            "channel_id": str(channel_id),
            "channel": {"id": str(channel_id), "type": 0},
            "member": {**member(), "user": user(person_id), "permissions": str(ALL_PERMISSIONS)},
            "app_permissions": str(ALL_PERMISSIONS),
            "locale": "en-US",
            "entitlements": [],
            "attachment_size_limit": 10_000_000,
            "authorizing_integration_owners": {},
            "context": 0,
            **more,
        }
        self.dispatch("INTERACTION_CREATE", interaction)
        return token

    def permit(self, channel_id: int, *, denied: int = 0) -> None:
        """Give the bot all permissions in a channel but those."""
        self.denied[channel_id] = denied
        self.dispatch("CHANNEL_UPDATE", self._channel(channel_id))

    def archive(self, channel_id: int, *, is_archived: bool) -> None:
        """Let a channel be a thread that is archived, or is so no more."""
        (self.archived.add if is_archived else self.archived.discard)(channel_id)
        times = {"auto_archive_duration": 60, "archive_timestamp": WHEN, "create_timestamp": WHEN}
        thread = {
            **self._channel(channel_id),
            "type": 11,
            "parent_id": str(CHANNEL_ID),
            "owner_id": str(PERSON_ID),
            "member_count": 1,
            "message_count": 1,
            "thread_metadata": {"archived": is_archived, "locked": False, **times},
        }
        self.dispatch("THREAD_UPDATE", thread)

    def freeze(self) -> None:
        """Let the gateway be connected and do nothing."""
        self.frozen = []

    def thaw(self) -> None:
        """Let the gateway do what it has not done."""
        backlog, self.frozen = self.frozen or [], None
        for act in backlog:
            act()

    def drop(self, code: int = 1001) -> None:
        """End the gateway's connection; it can be resumed."""
        session = self.sessions.get(self.session_id)
        if session is not None and session.send is not None:
            session.send({"op": "close", "d": code})
            session.send = None

    def send_away(self) -> None:
        """Ask the bot to connect anew, as Discord does from time to time; it can resume."""
        session = self.sessions.get(self.session_id)
        if session is not None and session.send is not None:
            session.send({"op": Op.RECONNECT, "d": None})

    def forget_sessions(self) -> None:
        """Let no connection be resumed."""
        self.drop()
        self.sessions.clear()

    # What the bot's messages look like

    def of(self, channel_id: int | None) -> list[Payload]:
        """Return all messages in order, in one channel or in all."""
        here = None if channel_id is None else str(channel_id)
        found = {
            message_id: message
            for message_id, message in self.messages.items()
            if here is None or message["channel_id"] == here
        }
        return [found[message_id] for message_id in sorted(found)]

    def ours(self, channel_id: int | None = None) -> list[Payload]:
        """Return the bot's messages in order, in one channel or in all."""
        return [message for message in self.of(channel_id) if is_ours(message)]

    @property
    def texts(self) -> list[str]:
        """What the bot's messages say, in order."""
        return [message["content"] for message in self.ours()]

    # The API

    async def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Reply:
        """Answer a request. Raises `LostError` where there is to be no answer."""
        self.num_requests += 1
        fault = next((one for one in self.faults if one.takes(method, path, body)), None)
        if fault is not None and fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault is not None and fault.reply is not None:
            return fault.reply
        reply = self._carry_out(method, path, query, body)
        self.on_change()
        if fault is not None and fault.on_carried_out is not None:
            fault.on_carried_out()
            raise LostError
        if fault is not None and fault.is_lost:
            raise LostError
        return reply

    def _carry_out(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Reply:
        if path == f"/applications/{BOT_ID}/commands":
            if method == "PUT":
                self.commands = registered(body)
            return Reply(self.commands)
        if path == "/users/@me":
            return Reply(user(BOT_ID))
        if path == "/oauth2/applications/@me":
            return Reply(application())
        if (callback := re.fullmatch(r"/interactions/(\d+)/(\w+)/callback", path)) is not None:
            return self._call_back(callback[1], callback[2], body)
        if (hook := re.fullmatch(r"/webhooks/\d+/(\w+)(?:/messages/@original)?", path)) is not None:
            return self._follow_up(hook[1], body or {})
        if method == "GET" and (channel := re.fullmatch(r"/channels/(\d+)", path)) is not None:
            is_known = int(channel[1]) in self.channel_ids
            unknown = refused(404, 10003, "Unknown Channel")
            return Reply(self._channel(int(channel[1]))) if is_known else unknown
        found = re.fullmatch(r"/channels/(\d+)/(typing|messages)(?:/(\d+))?", path)
        if found is None:
            self.unknown.append(f"{method} {path}")
            return refused(404)
        channel_id, message_id = int(found[1]), int(found[3] or 0)
        if channel_id not in self.channel_ids:
            return refused(404, 10003, "Unknown Channel")
        if self.denied.get(channel_id, 0) & VIEW_CHANNEL:
            return refused(403, 50001, "Missing Access")
        reads = not self.denied.get(channel_id, 0) & READ_HISTORY
        if method == "GET" and not message_id:
            return Reply(self._page(channel_id, query) if reads else [])
        if method == "GET" and not reads:
            return refused(403, 50001, "Missing Access")
        if method == "POST" and self.denied.get(channel_id, 0) & SEND_MESSAGES:
            return refused(403, 50013, "Missing Permissions")
        if found[2] == "typing":
            return Reply(None, 204)
        if method == "POST":
            return self._create(channel_id, body)
        if message_id not in self.messages:
            return refused(404, 10008, "Unknown Message")
        if channel_id in self.archived:
            return refused(400, 50083, "Thread is archived")
        if method == "PATCH" and not is_ours(self.messages[message_id]):
            return refused(403, 50005, "Cannot edit a message authored by another user")
        if method == "PATCH":
            return self._edit(message_id, body)
        if method == "DELETE":
            message = self.messages.pop(message_id)
            ids = {"id": message["id"], "channel_id": message["channel_id"], "guild_id": str(GUILD_ID)}
            self.dispatch("MESSAGE_DELETE", ids)
            return Reply(None, 204)
        return Reply(self.messages[message_id])

    def _call_back(self, interaction_id: str, token: str, body: Payload) -> Reply:
        """Take the first answer to an interaction, which counts once and for three seconds."""
        acted = self.interactions.get(token)
        if acted is None or self.now() > acted.at_s + FIRST_ANSWER_S:
            return refused(404, 10062, "Unknown interaction")
        if acted.is_acknowledged:
            return refused(400, 40060, "Interaction has already been acknowledged.")
        acted.is_acknowledged = True
        acted.told += filter(None, [(body.get("data") or {}).get("content")])
        return Reply({"interaction": {"id": interaction_id, "type": 2}})

    def _follow_up(self, token: str, body: Payload) -> Reply:
        """Take what follows the first answer, for a quarter of an hour."""
        acted = self.interactions.get(token)
        if acted is None or self.now() > acted.at_s + TOKEN_LIFE_S:
            return refused(401, 50027, "Invalid Webhook Token")
        if not acted.is_acknowledged:
            return refused(404, 10015, "Unknown Webhook")
        acted.told.append(body.get("content") or "")
        return Reply(self._message(user(BOT_ID), body.get("content") or "", CHANNEL_ID))

    def _create(self, channel_id: int, body: Payload) -> Reply:
        known_id, until = self.nonces.get(str(body.get("nonce")), (0, 0.0))
        if body.get("enforce_nonce") and known_id in self.messages and self.now() < until:
            return Reply(self.messages[known_id])
        if (wrong := _fault_of(body)) is not None:
            return wrong
        reference = body.get("message_reference")
        if reference is not None and self.denied.get(channel_id, 0) & READ_HISTORY:
            return refused(400, 160002, "Cannot reply without permission to read message history")
        if reference is not None and int(reference["message_id"]) not in self.messages:
            if reference.get("fail_if_not_exists", True):
                return refused(400, 50035, "Unknown message")
            reference = None
        message = self._message(user(BOT_ID), (body.get("content") or "").strip(), channel_id)
        fill(message, body)
        if "nonce" in body:
            message["nonce"] = body["nonce"]
            if len(self.nonces) > MAX_NONCES:
                self.nonces = {key: one for key, one in self.nonces.items() if one[1] > self.now()}
            self.nonces[str(body["nonce"])] = int(message["id"]), self.now() + NONCE_LIFE_S
        if reference is not None:
            message |= {"type": 19, "message_reference": {**reference, "guild_id": str(GUILD_ID)}}
        self.messages[int(message["id"])] = message
        self.dispatch("MESSAGE_CREATE", message)
        return Reply(message)

    def _edit(self, message_id: int, body: Payload) -> Reply:
        if (wrong := _fault_of(body)) is not None:
            return wrong
        message = self.messages[message_id]
        fill(message, body)
        return Reply(message)

    def _page(self, channel_id: int, query: Mapping[str, str]) -> list[Payload]:
        found = [one for one, what in sorted(self.messages.items()) if what["channel_id"] == str(channel_id)]
        return [self.messages[one] for one in page(found, query)]

    # The gateway

    def dispatch(self, event: str, data: Payload) -> None:
        """Send an event, now or when the connection is resumed."""
        session = self.sessions.get(self.session_id)
        if session is None:
            return
        payload = session.record(event, data)
        if session.send is not None and self.frozen is None:
            session.send(payload)
        elif session.send is not None and self.frozen is not None:
            self.frozen.append(functools.partial(session.send, payload))

    def connected(self, send: Send) -> None:
        """Greet a connection."""
        if self.frozen is not None:
            self.frozen.append(functools.partial(self.connected, send))
            return
        self.connected_at.append(self.now())
        send({"op": Op.HELLO, "d": {"heartbeat_interval": self.heartbeat_ms}})

    def take(self, payload: Payload, send: Send) -> None:
        """Take what the bot sends over the gateway."""
        if self.frozen is not None:
            self.frozen.append(functools.partial(self.take, payload, send))
            return
        match payload["op"]:
            case Op.HEARTBEAT:
                send({"op": Op.ACK, "d": None})
                self.num_heartbeats += 1
            case Op.IDENTIFY:
                self._identify(send)
            case Op.RESUME:
                self._resume(payload["d"], send)
        self.on_change()

    def _identify(self, send: Send) -> None:
        self.identified_at.append(self.now())
        self.session_id = f"session{len(self.identified_at)}"
        self.sessions = {self.session_id: Session(send=send)}
        self.dispatch("READY", ready(self.session_id, self.url, [GUILD_ID]))
        self.dispatch(
            "GUILD_CREATE", guild(GUILD_ID, "Server", [self._channel(one) for one in self.channel_ids])
        )

    def _resume(self, data: Payload, send: Send) -> None:
        session = self.sessions.get(data["session_id"])
        if session is None:
            send({"op": Op.INVALID, "d": False})
            return
        session.resume(send, data["seq"])
        self.resumed_at.append(self.now())
        self.dispatch("RESUMED", {})

    def left(self, send: Send) -> None:
        """Learn that a connection has ended."""
        for session in self.sessions.values():
            if session.send is send:
                session.send = None

    def _new_id(self) -> int:
        return snowflake(self.now(), self._newest_id)

    def _message(self, author: Payload, content: str, channel_id: int) -> Payload:
        self._newest_id = self._new_id()
        made = message(self._newest_id, author, content, channel_id)
        return {**made, "guild_id": str(GUILD_ID)}

    def _channel(self, channel_id: int) -> Payload:
        overwrite = {
            "id": str(GUILD_ID),
            "type": 0,
            "allow": "0",
            "deny": str(self.denied.get(channel_id, 0)),
        }
        return {
            "id": str(channel_id),
            "guild_id": str(GUILD_ID),
            "type": 0,
            "name": f"channel{channel_id}",
            "position": 0,
            "permission_overwrites": [overwrite],
        }


class LocalDiscord(DiscordPlace):
    """A place that is served on a port, and can be away."""

    def __init__(self, *channel_ids: int) -> None:
        super().__init__(channel_ids=(CHANNEL_ID, *channel_ids), on_change=self._notify)
        self.is_down = False
        self._changed = asyncio.Event()
        self._network = Network(self)

    async def until(self, is_so: Callable[[list[str]], bool], timeout_s: float = 30) -> None:
        """Wait for something to be true of what the bot's messages say, in order. Raises `TimeoutError`."""
        await self.until_true(lambda: is_so(self.texts), timeout_s)

    async def until_true(self, is_so: Callable[[], bool], timeout_s: float = 30) -> None:
        """Wait for something to be true of what came from the bot. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while not is_so():
                self._changed.clear()
                await self._changed.wait()

    async def until_heartbeat(self, number: int, timeout_s: float = 30) -> None:
        """Wait until the bot has sent so many heartbeats. Raises `TimeoutError`."""
        await self.until_true(lambda: self.num_heartbeats >= number, timeout_s)

    async def up(self) -> None:
        """Serve, on the same port as before."""
        self.url = await self._network.up()

    async def down(self) -> None:
        """Be away: every connection ends, and none is taken."""
        await self._network.down()

    def _notify(self) -> None:
        self._changed.set()


@asynccontextmanager
async def local_discord(*channel_ids: int) -> AsyncIterator[LocalDiscord]:
    """Serve on a free port until the end of the `async with`, with more channels besides the first."""
    place = LocalDiscord(*channel_ids)
    await place.up()
    try:
        yield place
    finally:
        await place.down()


def _fault_of(body: Payload) -> Reply | None:
    content = body.get("content") or ""
    if len(content) > MAX_LENGTH:
        return refused(400, 50035, "Invalid Form Body")
    if len(str(body.get("nonce", ""))) > MAX_NONCE_LENGTH:
        return refused(400, 50035, "Invalid Form Body")
    if "content" in body and not content.strip() and not body.get("embeds"):
        return refused(400, 50006, "Cannot send an empty message")
    return None
