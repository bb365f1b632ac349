"""A simulated Discord with the whole bot in it: real client, service and database, a scripted engine.

Time is simcord's: a token takes `TOKEN_S` seconds that pass only in `World.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import discord
import pytest
import simcord
from simcord.backend import serializers

from bot.conversation.memory import UNDO_TIME
from bot.conversation.model_switch import ClosableEngine, ModelSwitch, Shelf, SwitchableEngine
from bot.conversation.service import ChatService
from bot.language.phrases import phrase, render
from bot.on_discord.client import LlamacordClient
from bot.operations.metrics import Metrics
from bot.parameters import ChatParameters
from bot.privacy import Keeping, Privacy
from bot.safety.safety_model import SafetyModel
from bot.servers.moderation import Moderation
from bot.servers.rates import Allowance
from engine.errors import ModelFormatError
from engine.types import TextEngine
from engine.waiting.room import WaitingRoom
from storage.address import Location
from storage.conversations import ConversationKind, ConversationRef, Conversations, Message
from storage.database import Database
from storage.errors import StorageFullError
from storage.settings import SettingsStore
from tests.fakes import Script, ScriptedEngine

TOKEN_S = 30.0
EDIT_S = 6.0
SETTLE_S = 30.0
"""Real seconds that the bot may compute between two of its pauses; more is a fault."""
POLL_S = 0.001


class EmptyShelf:
    """No model to switch to."""

    def names(self) -> list[str]:
        return ["small"]

    def missing_bytes(self, name: str, current: str) -> int:
        return 0

    async def open(self, name: str) -> ClosableEngine:
        raise ModelFormatError(f"There is no {name}.")


class ParkedRoom(WaitingRoom):
    """A waiting room that tells the simulation who only waits for others."""

    def __init__(self, world: World, engine: TextEngine) -> None:
        super().__init__(lambda: engine.load)
        self._world = world

    async def _wait(self, future: asyncio.Future[None]) -> None:
        wait = super()._wait(future)
        if hasattr(self._world, "env"):  # and not in the playground, which runs on the real clock
            wait = self._world.env.external_wait(wait, reason="waits for the engine")
        await wait


class VirtualEnv(simcord.Env):
    """A simulated Discord whose clock only `advance_time` moves, and that looks often how the bot is."""

    def _schedule_timer(self, *_timer: Any) -> None:
        """Leave a pause to `advance_time` alone: simcord would let it pass in real time, too."""

    async def _settle_internal(self, *, idle: float = POLL_S, **options: Any) -> None:
        """Wait as simcord does, which looks every 50 ms for tasks that wait without ending."""
        await super()._settle_internal(idle=idle, **options)


class World:
    """One server with two channels, two members and a moderator, and the bot."""

    def __init__(self, location: Location, stack: contextlib.AsyncExitStack) -> None:
        self.location = location
        self.engine = ScriptedEngine()
        self.defaults = ChatParameters(max_history_tokens=1024)
        self.env: simcord.Env
        self.client: LlamacordClient
        self.conversations: Conversations
        self.database: Database
        self.moderation: Moderation
        self.safety_model: SafetyModel | None = None
        self.privacy: Privacy
        self.keeping = Keeping()
        self.sees_all_messages = False
        self.edit_interval_s = EDIT_S
        self.shutdown_grace_s = 0.0
        self.shelf: Shelf = EmptyShelf()
        self.operator_ids: frozenset[int] = frozenset()
        self.metrics: Metrics
        self.edit_interval_s = EDIT_S
        self.allowance = Allowance(per_user=30, per_server=0)
        self._stack = stack
        self._filler_ids = itertools.count(1)

    async def start(self) -> None:
        """Start the bot and furnish the server."""
        self.env = VirtualEnv(await self.new_client(), settle_timeout=SETTLE_S)
        await self.env.start()
        self._stack.push_async_callback(self.env.shutdown)
        self.guild = self.env.create_guild("Server")
        self.general = self.guild.create_text_channel("general")
        self.random = self.guild.create_text_channel("random")
        mods = self.guild.create_role("Mods", permissions=discord.Permissions(manage_messages=True))
        self.anna = self.guild.add_member(self.env.create_user("anna", global_name="Anna"))
        self.bob = self.guild.add_member(self.env.create_user("bob", global_name="Bob"))
        self.mod = self.guild.add_member(self.env.create_user("max", global_name="Max"), roles=[mods])
        chiefs = self.guild.create_role("Chiefs", permissions=discord.Permissions(manage_guild=True))
        self.chief = self.guild.add_member(self.env.create_user("eva", global_name="Eva"), roles=[chiefs])
        await self.env.settle()

    async def new_client(self) -> LlamacordClient:
        """Return another bot on the same database file."""
        self.database = await self._stack.enter_async_context(await Database.open(self.location))
        self.conversations = Conversations(self.database)
        self.metrics = Metrics()
        self.moderation = Moderation.over(
            self.database, self.conversations, self.allowance, safety_model=self.safety_model
        )
        engine = SwitchableEngine(self.engine)
        self.privacy = Privacy.over(
            self.database,
            self.conversations,
            self.keeping,
            undo_time=UNDO_TIME,
            engines=(engine,) if self.safety_model is None else (engine, self.safety_model),
        )
        chat = ChatService(
            engine,
            self.conversations,
            SettingsStore(self.database),
            self.defaults,
            gate=self.moderation.gate,
            servers=self.moderation.servers,
            screening=self.moderation.screening,
            on_answered=self.metrics.answered,
            on_removed=self.privacy.purging.note,
            room=ParkedRoom(self, engine),
            sums_up=lambda: True,
            shutdown_grace_s=self.shutdown_grace_s,
        )
        self.client = LlamacordClient(
            chat,
            self.moderation,
            self.privacy,
            self.metrics,
            ModelSwitch(chat, engine, self.shelf, "small"),
            operator_ids=self.operator_ids,
            sees_all_messages=self.sees_all_messages,
            edit_interval_s=self.edit_interval_s,
        )
        return self.client

    async def close(self) -> None:
        """Close the bot, letting the time pass that its last edits take."""
        with self.env._bot_scope():  # so that what it waits for is simulated time as well
            closing = asyncio.create_task(self.client.close())
        while not closing.done():
            await self.env.advance_time(1.0)
        await closing

    async def restart(self) -> None:
        """Close the bot and start another one."""
        await self.close()
        await self.env.restart_bot(await self.new_client())

    @property
    def me(self) -> str:
        """The bot's mention."""
        return f"<@{self.env.backend.bot_user.id}>"

    async def set_up(self, guild_id: int, changes: Mapping[str, object]) -> None:
        """Have a server set up, without a word of it in the moderators' log."""
        notices = self.moderation.notices
        listener, notices._listener = notices._listener, None
        await self.moderation.servers.change(guild_id, changes, by_user_id=1)
        notices._listener = listener

    async def fill_disk(self) -> None:
        """Let the database grow no further, and fill what room it has left."""
        filler = ConversationRef(1, ConversationKind.CHANNEL, None)
        conversation_id = await self.conversations.open(filler)
        async with self.database.transaction() as transaction:
            await transaction.fetch_all("CREATE TABLE filler (text TEXT)")
        await self.database.fetch_all("PRAGMA max_page_count = 1")
        for num_characters in (3000, 300, 30, 1):
            with contextlib.suppress(StorageFullError):
                while True:
                    await self.conversations.begin_turn(
                        conversation_id,
                        discord_id=next(self._filler_ids),
                        author_id=1,
                        author_name="",
                        content="x" * num_characters,
                        created_at=self.env.now(),
                    )
        with contextlib.suppress(StorageFullError):  # a page is left where a question would take two
            while True:
                async with self.database.transaction() as transaction:
                    await transaction.fetch_all("INSERT INTO filler VALUES (?)", ("x" * 1000,))

    @property
    def path(self) -> Path:
        """The file, where it is one."""
        assert isinstance(self.location, Path)
        return self.location

    def answers(self, *pieces: str, **script: Any) -> None:
        """Let the engine answer so from now on, a token a piece."""
        self.engine.scripts = [Script(pieces, delay_s=TOKEN_S, **script)]

    async def run(self, num_tokens: int = 1) -> None:
        """Let time pass for so many tokens, and for what is shown of the last one."""
        for _ in range(num_tokens):
            await self.env.advance_time(TOKEN_S)
        await self.env.advance_time(EDIT_S)

    def newcomer(self) -> simcord.MemberActor:
        """Return one more member: messages in a row of one and the same person would be one question."""
        name = f"newcomer{next(self._filler_ids)}"
        return self.guild.add_member(self.env.create_user(name, global_name=name.title()))

    def open_thread(self, channel: simcord.ChannelHandle) -> simcord.ChannelHandle:
        """Return a new thread of Anna's."""
        self.env.backend.create_thread(channel.id, "thread", self.anna.id)
        return channel.threads[-1]

    def replies(self, channel: simcord.ChannelHandle) -> list[discord.Message]:
        """Return what the bot wrote in a channel, ephemeral answers left out."""
        bot_id = self.env.backend.bot_user.id
        return [m for m in channel.history() if m.author.id == bot_id and not m.flags.ephemeral]

    def reply(self, channel: simcord.ChannelHandle) -> discord.Message:
        """Return the bot's only message in a channel."""
        (message,) = self.replies(channel)
        return message

    async def stored(self, channel: simcord.ChannelHandle) -> list[Message]:
        """Return what the database holds of a channel."""
        rows = await self.database.fetch_all(
            "SELECT id FROM conversations WHERE channel_id = ?", (channel.id,)
        )
        return [m for row in rows for m in await self.conversations.recent(row["id"], 100)]

    def check_no_pings(self) -> None:
        """Assert that no request could have pinged anybody but whoever is told that an answer is there."""
        for request in self.env.http_requests:
            body = request.json if isinstance(request.json, dict) else {}
            message = body.get("data") if "/callback" in request.path else body
            if isinstance(message, dict) and "content" in message:
                assert message["allowed_mentions"]["parse"] == [], request.path
                assert not message["allowed_mentions"].get("replied_user"), request.path
                assert not message["allowed_mentions"].get("roles"), request.path
                pinged = message["allowed_mentions"].get("users", [])
                notices = [
                    render(phrase(key, user=f"<@{pinged[0] if pinged else 0}>"), "en")
                    for key in ("answer.notify", "answer.notify_failed")
                ]
                assert pinged == [] or message["content"] in notices, request.path


def said(result: simcord.InteractionResult) -> str:
    """Return the one answer of an interaction, which only its user sees."""
    assert result.acknowledged
    assert result.response is not None
    assert result.response.ephemeral
    return result.response.content


def labels(message: discord.Message) -> list[str | None]:
    """Return the labels of a message's buttons, but for Report, which every ended answer has."""
    return [
        item.label
        for row in message.components
        if isinstance(row, discord.ActionRow)
        for item in row.children
        if isinstance(item, discord.Button) and ":report:" not in (item.custom_id or "")
    ]


@contextlib.asynccontextmanager
async def open_world(
    location: Location,
    *,
    keeping: Keeping | None = None,
    sees_all_messages: bool = False,
    edit_interval_s: float = EDIT_S,
    shutdown_grace_s: float = 0.0,
) -> AsyncIterator[World]:
    """Make a world, and at its end close the bot and look for pings."""
    async with contextlib.AsyncExitStack() as stack:
        world = World(location, stack)
        world.sees_all_messages = sees_all_messages
        world.edit_interval_s, world.shutdown_grace_s = edit_interval_s, shutdown_grace_s
        world.keeping = keeping or world.keeping
        await world.start()
        yield world
        world.check_no_pings()
        await world.close()
        world.env.raise_errors()


def applications_of_webhooks(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Return the applications of webhooks, to be filled: Discord tells them, and simcord does not."""
    owners: dict[int, int] = {}
    payload_of = serializers.message_payload

    def with_application(backend: Any, message: Any, **options: Any) -> Any:
        payload: Any = payload_of(backend, message, **options)
        if message.webhook_id in owners:
            payload["application_id"] = str(owners[message.webhook_id])
        return payload

    monkeypatch.setattr(serializers, "message_payload", with_application)
    return owners
