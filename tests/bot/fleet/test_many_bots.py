"""Two processes of one bot on one PostgreSQL: one is killed, connections break, and nobody notices much."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import pytest

from benchmarks.many_bots import READY_S, Run, made, second
from benchmarks.sharded_discord import sharded_discord
from tests.postgres_server import PostgresServer

SPEED = 6
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="PostgreSQL is for Linux and macOS")


async def test_several_shards_in_one_process_answer_with_a_database_in_a_file(tmp_path: Path) -> None:
    async with sharded_discord(8, 2, speed=SPEED) as discord:
        settings = {"DATABASE": str(tmp_path / "bot.sqlite3"), "SHARDS": "0-1/2"}
        bot = made(tmp_path / "0", 0, discord, **settings)
        run = Run(discord, [bot], random.Random(1))
        try:
            await bot.start()
            await run.until(run.all_attended, READY_S, "the first sessions")
            for server in range(8):
                run.ask_in(server)
            await run.until(run.are_all_answered, READY_S, "the answers")
            assert await bot.stop() == 0, bot.log[-3000:]
            assert run.report()
            assert "Traceback" not in bot.log
        finally:
            await bot.kill()


async def test_each_question_is_answered_once_whatever_happens_to_a_process(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    with postgres.lent() as address:
        async with sharded_discord(24, 2, speed=SPEED) as discord:
            settings = {"DATABASE": address.url, "SHARDS": "1 of 2"}
            bots = [made(tmp_path / str(number), number, discord, **settings) for number in range(2)]
            run = Run(discord, bots, random.Random(1))
            try:
                for bot in bots:
                    await bot.start()
                await run.until(run.all_attended, READY_S, "the first sessions")
                asking = asyncio.create_task(run.ask(5, per_s=4))
                await asyncio.sleep(0.5)
                await second(bots[0], discord)
                await bots[0].kill()
                await bots[0].start()
                for server in range(4):
                    run.ask_in(server)  # two of them while nobody is there
                await asyncio.sleep(0.2)
                postgres.kill_connections(address)
                await run.until(run.all_attended, READY_S, "the shards of a killed process")
                await asking
                await run.until(run.are_all_answered, READY_S, "the last answers")
                for bot in bots:
                    assert await bot.stop() == 0, bot.log[-3000:]
                assert run.report()
                assert sum(not one.was_attended for one in run.asked) >= 2
                assert {"Traceback" in bot.log for bot in bots} == {False}
            finally:
                for bot in bots:
                    await bot.kill()
