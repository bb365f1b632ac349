"""Many channels at once on the simulated Discord, with real clocks: nothing lost, mixed, kept or late.

`python -m benchmarks.discord_load` does the same with 200 channels, and with a real model.
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import discord
import numpy as np
import pytest

from benchmarks.crowd import open_crowd
from benchmarks.discord_load import GOAL_P99_MS, echo, measure
from bot.conversation.parameters import ChatParameters
from tests.fakes import ScriptedEngine

NUM_ROOMS = 40
TURNS = (0, 0, 1)
MAX_RUNNING = 32
PAUSE_S = 0.002


async def test_eighty_people_in_forty_channels_are_each_answered_once_and_in_order(tmp_path: Path) -> None:
    engine = ScriptedEngine(respond=functools.partial(echo, piece_s=0.01, num_pieces=2))
    async with open_crowd(
        engine,
        tmp_path,
        NUM_ROOMS,
        max_running=MAX_RUNNING,
        parameters=ChatParameters(max_history_tokens=1024),
        edit_interval_s=0.1,
    ) as crowd:
        _, lags_ms, num_objects_left, num_tasks_left = await measure(crowd, TURNS, PAUSE_S)
        outcome = await crowd.outcome([[m.content for m in dialog] for dialog in engine.dialogs])
    assert outcome.is_perfect, outcome
    assert outcome.num_asked == NUM_ROOMS * len(TURNS)
    assert (num_objects_left, num_tasks_left) == (0, 0)
    assert engine.num_running == 0
    # The goal is the benchmark's; here other work on the machine must not fail the test.
    assert np.percentile(lags_ms, 99) < 10 * GOAL_P99_MS


async def test_a_question_whose_file_takes_long_to_come_is_not_overtaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = asyncio.Event()

    async def slow(*_: object, **__: object) -> bytes:
        await arrived.wait()
        return b"a text"

    monkeypatch.setattr(discord.Attachment, "read", slow)
    async with open_crowd(ScriptedEngine(), tmp_path, 2, max_running=4, parameters=ChatParameters()) as crowd:
        room, other = crowd.rooms
        anna, bob = room.people
        await anna.send(room.channel, f"{crowd.mention} with a file", attachments=[("a.txt", b"a text")])
        await bob.send(room.channel, f"{crowd.mention} without")
        await other.people[0].send(other.channel, f"{crowd.mention} elsewhere")
        await crowd.until_answered(10)
        assert other.replies()
        assert await crowd.remembered(room) == []
        arrived.set()
        await crowd.until_answered(10)
        said = [text.splitlines()[0] for text in await crowd.remembered(room)]
    assert [text for text in said if text.startswith("with")] == ["with a file", "without"]
