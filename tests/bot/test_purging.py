"""What the engines have to forget is owed until all of them have, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from bot.conversation.model_switch import SwitchableEngine
from bot.privacy import NUM_ROUNDS_OTHERS_HAVE, PURGE_INTERVAL_S, Purging
from storage.conversations import Conversations
from storage.database import Database
from storage.removals import Removals, Removed
from tests.bot.conversation.slow_databases import SlowSqlite
from tests.engine.remote.fake_servers import Remote, text_files
from tests.fakes import ScriptedEngine
from tests.storage.steps import asked_and_answered
from tests.virtual_time import run

ROOT = Path(__file__).parents[2]
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from storage.conversations import Conversations
from storage.database import Database
from tests.storage.steps import asked_and_answered

async def main():
    database = await Database.open(Path(sys.argv[1]))
    conversations = Conversations(database)
    await asked_and_answered(conversations, 1)
    await conversations.delete_question(1)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@asynccontextmanager
async def purging(database: Database, engine: ScriptedEngine | SwitchableEngine) -> AsyncIterator[Purging]:
    """Run what tells an engine to forget, until the end of the process that it stands for."""
    made = Purging(Conversations(database), Removals(database), timedelta(minutes=10), (engine,))
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def opened(place: SlowSqlite) -> Database:
    place.empty()
    return place.opened(lambda: asyncio.sleep(0))


async def remove(database: Database, discord_id: int = 1) -> None:
    conversations = Conversations(database)
    await asked_and_answered(conversations, discord_id)
    await conversations.delete_question(discord_id)


def test_what_was_not_forgotten_at_the_end_is_at_the_next_start() -> None:
    async def live() -> None:
        database, engine = opened(SlowSqlite()), ScriptedEngine()
        async with purging(database, engine) as first:
            await asyncio.sleep(1)
            await remove(database)
            first.note()
            assert engine.num_drops == 0
        async with purging(database, engine):
            await asyncio.sleep(2)
            assert engine.num_drops == 1
            assert await Removals(database).count() == Removed(1, 1)
        async with purging(database, engine):
            await asyncio.sleep(10 * PURGE_INTERVAL_S)
        assert engine.num_drops == 1

    run(live())


def test_it_is_owed_until_the_last_server_has_heard_of_it() -> None:
    async def live() -> None:
        database, engine = opened(SlowSqlite()), ScriptedEngine(is_forgetting=True)
        async with purging(database, engine) as first:
            await remove(database)
            await first.drop_caches()
            await asyncio.sleep(10 * PURGE_INTERVAL_S)
            assert (engine.num_drops, await Removals(database).count()) == (1, Removed(1, 0))
            await remove(database, 11)
            engine.is_forgetting = False
            await asyncio.sleep(2)
            assert await Removals(database).count() == Removed(2, 1)
            first.note()
            await asyncio.sleep(PURGE_INTERVAL_S + 2)
            assert (engine.num_drops, await Removals(database).count()) == (2, Removed(2, 2))

    run(live())


def test_what_another_process_owes_is_left_to_it_for_a_while() -> None:
    async def live() -> None:
        database, engine = opened(SlowSqlite()), ScriptedEngine()
        async with purging(database, engine):
            await asyncio.sleep(1)
            for number in range(3):  # each is forgotten in time
                await remove(database, 100 * number + 1)
                await asyncio.sleep(PURGE_INTERVAL_S)
                await Removals(database).forgotten(number + 1)
            await asyncio.sleep(NUM_ROUNDS_OTHERS_HAVE * PURGE_INTERVAL_S)
            assert engine.num_drops == 0
            await remove(database, 301)  # and this one by nobody
            await asyncio.sleep((NUM_ROUNDS_OTHERS_HAVE - 1) * PURGE_INTERVAL_S)
            assert engine.num_drops == 0
            await asyncio.sleep(3 * PURGE_INTERVAL_S)
            assert (engine.num_drops, await Removals(database).count()) == (1, Removed(4, 4))

    run(live())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
async def test_a_process_that_is_killed_right_after_a_deletion_owes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "bot.sqlite3")]
    killed = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    remote = Remote(text_files(tmp_path), tmp_path, num_servers=2)
    here, away = remote.wire.all
    away.is_up = False
    async with (
        await Database.open(tmp_path / "bot.sqlite3") as database,
        remote.open() as engine,
        purging(database, SwitchableEngine(engine)),
        asyncio.timeout(30),
    ):
        while not here.num_forgotten:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        assert (await Removals(database).count()).is_owed
        away.is_up = True
        while (await Removals(database).count()).is_owed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (here.num_forgotten, away.num_forgotten) == (1, 1)
