"""The end of a run and the start of the next on the simulated Discord: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import simcord

from bot.conversation.service import MAX_WAITING
from storage.conversations import MessageState, Role
from tests.bot.e2e.world import EDIT_S, TOKEN_S, World, labels, open_world
from tests.fakes import Script

LONG_S = 600.0
"""A grace that no test outlasts."""
SHORT_S = 10.0


@contextlib.asynccontextmanager
async def closing(world: World) -> AsyncIterator[None]:
    """Stop the bot; at the end it has stopped."""
    with world.env._bot_scope():  # so that the grace is simulated time as well
        task = asyncio.create_task(world.client.close())
    await asyncio.sleep(0)
    yield
    async with asyncio.timeout(10):
        await task


async def restart(world: World) -> None:
    await world.env.restart_bot(await world.new_client())


def shown(world: World, channel: simcord.ChannelHandle) -> list[tuple[int, str]]:
    return [(m.id, m.content) for m in world.replies(channel)]


def answered(world: World) -> dict[int | None, str]:
    """Return what replies say in #general, by the question; no question may have two."""
    replies = [(m.reference.message_id, m.content) for m in world.replies(world.general) if m.reference]
    assert len(dict(replies)) == len(replies)
    return dict(replies)


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path / "llamacord.sqlite3", shutdown_grace_s=LONG_S) as world:
        yield world


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path / "llamacord.sqlite3", shutdown_grace_s=SHORT_S) as world:
        yield world


async def test_answers_end_within_the_grace_and_the_next_run_finds_them_whole(patient: World) -> None:
    world = patient
    world.engine.respond = lambda dialog: Script(("heard: ", dialog[-1].content), delay_s=TOKEN_S)
    questions = [
        await person.send(world.general, f"{world.me} {text}")
        for person, text in ((world.anna, "one"), (world.bob, "two"))
    ]
    await world.mod.send(world.random, f"{world.me} three")
    await world.run(1)
    async with closing(world):
        await world.newcomer().send(world.random, f"{world.me} too late")
        assert "I'm restarting" in world.replies(world.random)[-1].content
        await world.run(9)
    texts = ("heard: one", "heard: Bob: two")
    assert answered(world) == {one.id: text for one, text in zip(questions, texts, strict=True)}
    assert world.replies(world.random)[0].content == "heard: three"
    before = shown(world, world.general), shown(world, world.random)
    await restart(world)
    await world.run(2)
    assert (shown(world, world.general), shown(world, world.random)) == before
    assert [m.content for m in await world.stored(world.random)] == ["three", "heard: three"]
    assert all(m.state is MessageState.COMPLETE for m in await world.stored(world.general))
    await world.bob.send(world.general, f"{world.me} four")
    await world.run(3)
    said = [m.content for m in world.engine.dialogs[-1]][1:]
    assert [text.split(": ")[-1] for text in said] == ["one", "one", "two", "two", "four"]


async def test_what_outlasts_the_grace_is_marked_once_and_can_be_gone_on_with(hasty: World) -> None:
    world = hasty
    world.engine.scripts = [Script(("word ",), TOKEN_S, loops=True), Script(("whole",), TOKEN_S)]
    question = await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    async with closing(world):
        await world.env.advance_time(SHORT_S + 1)
        await world.env.advance_time(EDIT_S)
    answer = world.reply(world.general)
    assert answer.content.startswith("word word")
    assert "Interrupted by a restart" in answer.content
    assert labels(answer) == ["Regenerate", "Continue"]
    before = shown(world, world.general)
    await restart(world)
    await world.run(1)
    assert shown(world, world.general) == before
    assert list(answered(world)) == [question.id]
    await world.anna.click(world.reply(world.general), label="Continue")
    await world.run(3)
    assert world.reply(world.general).content.startswith("word word")
    assert world.reply(world.general).content.endswith("whole")
    roles = [m.role for m in await world.stored(world.general)]
    assert roles == [Role.USER, Role.ASSISTANT]


async def test_a_full_conversation_is_marked_to_the_last(hasty: World) -> None:
    world = hasty
    world.answers("word ", loops=True)
    questions = [
        await world.newcomer().send(world.general, f"{world.me} {number}")
        for number in range(1 + MAX_WAITING)
    ]
    await world.run(2)
    async with closing(world):
        await world.env.advance_time(SHORT_S + 1)
        for _ in range(4):
            await world.env.advance_time(EDIT_S)
    assert answered(world).keys() == {question.id for question in questions}
    assert all("Interrupted by a restart" in m.content for m in world.replies(world.general))
    before = shown(world, world.general)
    await restart(world)
    await world.run(1)
    assert shown(world, world.general) == before
    states = [m.state for m in await world.stored(world.general) if m.role is Role.ASSISTANT]
    assert states == [MessageState.INTERRUPTED] * (1 + MAX_WAITING)
