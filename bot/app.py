"""The composition root: builds engine, storage, service and front end from the settings, and runs them.

Nothing else in the program constructs these. What it opens it closes, in the opposite order.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from rich.console import Console

from bot.config import Reloader, Settings
from bot.conversation.memory import UNDO_TIME
from bot.conversation.model_switch import ClosableEngine, ModelSwitch, SwitchableEngine
from bot.conversation.service import ChatService
from bot.engines import Engines, open_moderation, sums_up
from bot.fleet.choice import ShardChoice
from bot.fleet.fleet import Fleet, fleet_of
from bot.on_discord.client import LlamacordClient, client_for
from bot.on_discord.connection import StartError, connect
from bot.operations.health import watched
from bot.operations.metrics import Metrics
from bot.privacy import Privacy
from bot.safety.safety_model import SafetyModel
from bot.servers.moderation import Moderation
from bot.terminal import TerminalChat, line_source
from engine.waiting.room import WaitingRoom
from storage.address import PostgresAddress
from storage.conversations import Conversations
from storage.database import Database, in_use
from storage.settings import SettingsStore
from storage.shards import Shards

_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_client(settings: Settings, engines: Engines) -> AsyncIterator[LlamacordClient]:
    """Open storage, engine and service for one client.

    Raises `StorageError`, `ModelError`, `StartError` or `ShardsTakenError`.
    """
    parts = _open_parts(settings, engines, is_shared=True)
    async with parts as (database, engine), AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(_open_fleet(settings))
        conversations = Conversations(database, shards=fleet.shards)
        safety_model = await stack.enter_async_context(_open_safety_model(settings))
        moderation = Moderation.over(database, conversations, settings.allowance, safety_model=safety_model)
        metrics = Metrics()
        switchable = await stack.enter_async_context(SwitchableEngine(engine))
        privacy = Privacy.over(
            database,
            conversations,
            settings.keeping,
            undo_time=UNDO_TIME,
            engines=(switchable,) if safety_model is None else (switchable, safety_model),
        )
        chat = ChatService(
            switchable,
            conversations,
            SettingsStore(database),
            settings.chat,
            gate=moderation.gate,
            servers=moderation.servers,
            screening=moderation.screening,
            on_answered=metrics.answered,
            on_removed=privacy.purging.note,
            may_work_ahead=engines.may_work_ahead(),
            sums_up=lambda: sums_up(settings, switchable.info),
            shutdown_grace_s=settings.shutdown_grace_s,
            room=WaitingRoom(lambda: switchable.load, max_waiting=settings.max_queue),
        )
        database.on_written, privacy.purging.on_dropped = chat.note_change, chat.idle.forget
        engines.on_other_model = chat.begin_anew
        async with chat:
            client = client_for(fleet)(
                chat,
                moderation,
                privacy,
                metrics,
                ModelSwitch(chat, switchable, engines.shelf(), engines.name),
                operator_ids=settings.operator_ids,
                sees_all_messages=settings.sees_all_messages,
                fleet=fleet,
            )
            yield client


@asynccontextmanager
async def open_chat(settings: Settings, engines: Engines) -> AsyncIterator[ChatService]:
    """Open storage, engine and service without a front end. Raises `StorageError` or `ModelError`."""
    async with (
        _open_parts(settings, engines) as (database, engine),
        ChatService(engine, Conversations(database), SettingsStore(database), settings.chat) as chat,
    ):
        yield chat


@asynccontextmanager
async def _open_fleet(settings: Settings) -> AsyncIterator[Fleet]:
    """Have shards, over a connection of its own: signs of life wait for nothing else."""
    choice = settings.shards
    if not isinstance(settings.database, PostgresAddress):
        if not choice.are_all:
            raise StartError(choice.needs_postgres)
        yield Fleet(Shards(0, choice.count - 1, choice.count))
        return
    async with await Database.open(settings.database) as database, fleet_of(database, choice) as fleet:
        yield fleet


@asynccontextmanager
async def _open_safety_model(settings: Settings) -> AsyncIterator[SafetyModel | None]:
    """Open the moderation model, where there is to be one. Raises `ModelError`."""
    engine = await open_moderation(settings)
    if engine is None:
        yield None
        return
    try:
        _log.info("The moderation model is %s", engine.info.name)
        yield SafetyModel(engine, refuses_unchecked=settings.moderation_refuses_unchecked)
    finally:
        await engine.close()


@asynccontextmanager
async def _open_parts(
    settings: Settings, engines: Engines, *, is_shared: bool = False
) -> AsyncIterator[tuple[Database, ClosableEngine]]:
    async with in_use(settings.database, is_shared=is_shared) as database:
        engine = await engines.open()
        try:
            info = engine.info
            _log.info("The model is %s (%s, %s)", info.name, info.precision, info.provider)
            yield database, engine
        finally:
            await engine.close()


async def run_on_discord(
    settings: Settings,
    engines: Engines,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    read_settings: Callable[[], Settings],
) -> None:
    """Connect to Discord and answer until `stop` is set; `on_ready` gets the bot's name.

    On the signal SIGHUP the settings are read anew. Raises `StartError` where Discord cannot be reached or
    refuses the bot.
    """
    if settings.discord_token is None:
        raise StartError("DISCORD_TOKEN is not set.")
    async with (
        open_client(settings, engines) as client,
        watched(client, settings.metrics_port, settings.metrics_host),
    ):
        Reloader(settings, read_settings, client.apply).listen()
        await connect(client, settings.discord_token, stop=stop, on_ready=on_ready, lost=client.fleet.lost)


async def run_playground(
    settings: Settings, engines: Engines, *, stop: asyncio.Event, on_ready: Callable[[str], None]
) -> None:
    """Serve the bot on a simulated Discord until `stop` is set; `on_ready` gets the page's URL.

    Raises `PlaygroundError`.
    """
    from bot.playground import serve as playground

    async with open_client(dataclasses.replace(settings, shards=ShardChoice()), engines) as client:
        await playground.serve(
            lambda: client,
            port=settings.playground_port,
            on_ready=on_ready,
            stop=stop,
            greeting=await asyncio.to_thread(engines.greeting),
        )


async def make_pictures(settings: Settings, engines: Engines, folder: Path) -> None:
    """Play the scenes of the documentation in the playground, in a database of their own.

    Raises `PlaygroundError`.
    """
    from bot.playground import serve as playground

    with tempfile.TemporaryDirectory(prefix="llamacord-pictures-") as place:
        database = Path(place, "bot.db")
        settings = dataclasses.replace(
            settings, database=database, sees_all_messages=True, shards=ShardChoice()
        )
        async with open_client(settings, engines) as client:
            await playground.make_pictures(lambda: client, folder)


async def run_in_terminal(settings: Settings, engines: Engines, console: Console) -> None:
    """Talk in the terminal until the end of its input."""
    async with open_chat(settings, engines) as chat:
        await TerminalChat(chat, console, line_source(console)).run()
