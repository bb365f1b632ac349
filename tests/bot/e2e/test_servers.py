"""The whole bot on a simulated Discord over two real servers, one of which is killed while it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.crowd import open_crowd
from benchmarks.replicas import WatchedEngine, count_complete
from bot.language.phrases import phrase
from bot.parameters import ChatParameters
from engine.remote.remote_engine import Servers
from engine.types import SamplingParams
from tests.engine.remote.server_process import ServerProcess
from tests.engine.tiny_model import make_tiny_model

NUM_ROOMS, TIMEOUT_S = 6, 110.0
SAMPLING = SamplingParams(
    temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=4, max_new_tokens=250
)


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[list[ServerProcess]]:
    model = make_tiny_model(tmp_path / "model", context_length=1024)
    processes = [ServerProcess(model, tmp_path, PROVIDER="cpu") for _ in range(2)]
    try:
        await asyncio.gather(*(process.start() for process in processes))
        yield processes
    finally:
        for process in processes:
            await process.kill()


async def test_one_of_two_servers_is_killed_and_every_question_is_answered_once(
    tmp_path: Path, servers: list[ServerProcess]
) -> None:
    place = Servers(tuple(server.address for server in servers), tmp_path / "cache", secret=b"s")
    parameters = ChatParameters(sampling=SAMPLING, max_history_tokens=600)
    async with await WatchedEngine.open(place) as engine:
        assert isinstance(engine, WatchedEngine)
        seen = engine.watch()
        crowd_of = open_crowd(
            engine, tmp_path, NUM_ROOMS, parameters=parameters, edit_interval_s=0.1, is_echoed=False
        )
        async with crowd_of as crowd:
            await crowd.ask((0,), 0.0)
            killed = await _in_the_middle(engine, servers)
            await killed.kill()
            await crowd.until_answered(TIMEOUT_S)
            await crowd.ask((1,), 0.0)
            await crowd.until_answered(TIMEOUT_S)
            outcome = await crowd.outcome()
            num_complete = await count_complete(crowd)
            notes = [reply.content for room in crowd.rooms for reply in room.replies()]
    assert outcome.is_perfect, outcome
    assert outcome.num_asked == num_complete == 2 * NUM_ROOMS
    broken = [one for one in seen if one.completion is not None and one.completion.num_breaks]
    assert broken
    told = [note for note in notes if str(phrase("answer.gone_on_with")) in note]
    assert len(told) == len(broken), "who set a seed is told, and nobody else"


async def _in_the_middle(engine: WatchedEngine, servers: list[ServerProcess]) -> ServerProcess:
    """Wait until all answers that are not whole yet have begun, and return where one is made."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            await asyncio.sleep(0.002)
            running = [answer for answer in engine._answers if not answer._has_ended]
            busy = [replica.address for replica in engine._replicas.all if replica.num_own]
            if running and busy and all(answer._text for answer in running):
                return next(server for server in servers if server.address in busy)
