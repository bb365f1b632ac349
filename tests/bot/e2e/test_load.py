"""Many channels at once on the simulated Discord, with real clocks: nothing lost, mixed, kept or late.

`python -m benchmarks.discord_load` does the same with 200 channels, and with a real model.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import discord
import numpy as np
import pytest

from benchmarks.common import TIMER_S
from benchmarks.crowd import open_crowd
from benchmarks.discord_load import GOAL_KB_PER_ANSWER, GOAL_P99_MS, echo, grown_kb_per_answer, measure
from bot.parameters import ChatParameters
from engine.types import TALK, ChatMessage
from tests.fakes import Script, ScriptedEngine

NUM_ROOMS = 40
TURNS = (0, 0, 1)
MAX_RUNNING = 32
PAUSE_S = 0.002


def busy_engine(respond: Callable[[Sequence[ChatMessage]], Script]) -> ScriptedEngine:
    return ScriptedEngine(respond=respond, max_requests=MAX_RUNNING, max_kv_tokens=MAX_RUNNING * 4096)


async def test_eighty_people_in_forty_channels_are_each_answered_once_and_in_order(tmp_path: Path) -> None:
    engine = busy_engine(functools.partial(echo, piece_s=0.01, num_pieces=2, first_s=0.3))
    async with open_crowd(
        engine,
        tmp_path,
        NUM_ROOMS,
        parameters=ChatParameters(max_history_tokens=1024),
        edit_interval_s=0.1,
    ) as crowd:
        measured = await measure(crowd, TURNS, PAUSE_S)
        outcome = await crowd.outcome([[m.content for m in dialog] for dialog in engine.dialogs])
    assert outcome.is_perfect, outcome
    assert outcome.num_asked == NUM_ROOMS * len(TURNS)
    assert (measured.num_objects_left, measured.num_tasks_left) == (0, 0)
    assert engine.num_running == 0
    # The benchmark's goal, but in the loop's own work: what else the machine does must not fail the test.
    assert np.percentile(measured.works_ms, 95) < 1e3 * TIMER_S + GOAL_P99_MS
    print(
        np.percentile(measured.works_ms, [50, 95, 99, 100]),
        len(measured.works_ms),
        measured.p99_ms,
        measured.seconds,
    )


async def test_with_talk_and_threads_nothing_is_lost_and_each_channel_is_looked_up_once(
    tmp_path: Path,
) -> None:
    engine = busy_engine(functools.partial(echo, piece_s=0.01, num_pieces=2, first_s=0.3))
    async with open_crowd(
        engine,
        tmp_path,
        NUM_ROOMS,
        parameters=ChatParameters(max_history_tokens=1024),
        edit_interval_s=0.1,
        in_threads=True,
    ) as crowd:
        measured = await measure(crowd, TURNS, PAUSE_S)
        outcome = await crowd.outcome([[m.content for m in dialog] for dialog in engine.dialogs])
        fetches = crowd.fetches
        assert {room.channel.id for room in crowd.rooms} == set(fetches)
        assert set(fetches.values()) == {1}
        assert all(len(room.places) == 3 for room in crowd.rooms), "two threads: a burst is one question"
    assert outcome.is_perfect, outcome
    assert (measured.num_objects_left, measured.num_tasks_left) == (0, 0)
    assert any(TALK in dialog[-1].content for dialog in engine.dialogs)
    assert np.percentile(measured.works_ms, 95) < 1e3 * TIMER_S + GOAL_P99_MS


async def test_an_answer_that_ended_leaves_little_behind(tmp_path: Path) -> None:
    engine = busy_engine(functools.partial(echo, piece_s=0.0, num_pieces=2, first_s=0.0))
    parameters = ChatParameters(max_history_tokens=1024)
    async with open_crowd(engine, tmp_path, NUM_ROOMS, parameters=parameters, edit_interval_s=0.1) as crowd:
        kb = await grown_kb_per_answer(crowd, engine)
        assert kb < GOAL_KB_PER_ANSWER


async def test_a_question_whose_file_takes_long_to_come_is_not_overtaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = _slow_files(monkeypatch)
    async with open_crowd(ScriptedEngine(), tmp_path, 2, parameters=ChatParameters()) as crowd:
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


@pytest.mark.parametrize("which", ["with a file", "behind a file"])
async def test_a_question_that_is_deleted_while_it_waits_for_a_file_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    arrived = _slow_files(monkeypatch)
    async with open_crowd(ScriptedEngine(), tmp_path, 1, parameters=ChatParameters()) as crowd:
        (room,) = crowd.rooms
        anna, bob = room.people
        first = await anna.send(
            room.channel, f"{crowd.mention} with a file", attachments=[("a.txt", b"a text")]
        )
        second = await bob.send(room.channel, f"{crowd.mention} behind a file")
        await (anna if which == "with a file" else bob).delete(first if which == "with a file" else second)
        if which == "with a file":
            await crowd.until_answered(10)  # nobody waits for it any more
            assert len(room.replies()) == 1
        arrived.set()
        await crowd.until_answered(10)
        said = [text.splitlines()[0] for text in await crowd.remembered(room)]
        assert len(room.replies()) == 1
    assert which not in said
    assert len(said) == 2


async def test_a_question_that_is_edited_while_it_waits_is_asked_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = _slow_files(monkeypatch)
    engine = ScriptedEngine()
    async with open_crowd(engine, tmp_path, 1, parameters=ChatParameters()) as crowd:
        (room,) = crowd.rooms
        anna, bob = room.people
        await anna.send(room.channel, f"{crowd.mention} with a file", attachments=[("a.txt", b"a text")])
        message = await bob.send(room.channel, f"{crowd.mention} a tpyo")
        await bob.edit(message, f"{crowd.mention} a typo")
        arrived.set()
        await crowd.until_answered(10)
        said = await crowd.remembered(room)
    assert "a typo" in said
    assert not any("tpyo" in text for text in said)
    assert not any("tpyo" in m.content for dialog in engine.dialogs for m in dialog)


def _slow_files(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let files come only once the event that is returned is set."""
    arrived = asyncio.Event()

    async def slow(*_: object, **__: object) -> bytes:
        await arrived.wait()
        return b"a text"

    monkeypatch.setattr(discord.Attachment, "read", slow)
    return arrived
